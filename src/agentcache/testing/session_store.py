"""What every session store promises."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from attrs import evolve

from agentcache.domain.conversation import Message, Outcome, ToolCall
from agentcache.domain.segment import Segment
from agentcache.domain.session import Session, SessionKey, Usage
from agentcache.domain.spans import Span, SpanKind
from agentcache.domain.tokens import tokens
from agentcache.domain.trace import Trace
from agentcache.ports.session_store import Catalogue, Commit, SessionStore
from agentcache.testing.catalogues import (
    CALL,
    HELLO,
    a_segment,
    a_session,
    a_span,
    content,
    refused,
)
from agentcache.testing.session_store_machine import Make, Reopen, session_store_machine
from agentcache.testing.strategies import OTHER_ROOT, ROOT

__all__ = ["Make", "Reopen", "SessionStoreContract", "session_store_machine"]


class SessionStoreContract:
    """Subclass it, and override the fixture `make`: it opens the store in a folder.

    Where opening the folder again does not find what was committed, override `reopen` too.
    """

    @pytest.fixture
    def make(self) -> Make:
        """Opens the store under test, made if it is not there."""
        raise NotImplementedError("override the fixture `make`")

    @pytest.fixture
    def reopen(self, make: Make, tmp_path: Path) -> Iterator[Reopen]:
        """Closes a store, and gives it as it is after a restart."""
        with ExitStack() as opened:

            def restarted(store: SessionStore) -> SessionStore:
                store.close()
                again = make(tmp_path)
                opened.callback(again.close)
                return again

            yield restarted

    @pytest.fixture
    def store(self, make: Make, tmp_path: Path) -> Iterator[SessionStore]:
        """An empty store."""
        opened = make(tmp_path)
        yield opened
        opened.close()

    def test_a_new_store_is_empty(self, store: SessionStore) -> None:
        assert store.load() == Catalogue()

    def test_what_was_committed_is_there_after_reopening(
        self, store: SessionStore, reopen: Reopen
    ) -> None:
        parent = a_segment([1, 2, 3])
        child = a_segment([4], parent, 2)
        session = a_session(at=child)
        store.commit(Commit(add=(parent, child), put=(session,)))
        expected = content(Catalogue((parent, child), (session,)))
        assert content(store.load()) == expected
        assert content(reopen(store).load()) == expected

    def test_parents_come_before_their_children_whatever_the_order_they_were_added_in(
        self, store: SessionStore
    ) -> None:
        parent = a_segment([1, 2, 3])
        child = a_segment([4], parent)
        grandchild = a_segment([5], child)
        store.commit(Commit(add=(grandchild, parent, child)))
        assert [one.key for one in store.load().segments] == [parent.key, child.key, grandchild.key]

    def test_a_segment_cannot_be_added_without_its_parent(self, store: SessionStore) -> None:
        parent = a_segment([1, 2, 3])
        child = a_segment([4], parent)
        sibling = a_segment([7])
        refused(store, Commit(add=(sibling, child)), parent.key)

    @pytest.mark.parametrize("row", [4, 9])
    def test_a_segment_cannot_follow_a_row_that_its_parent_does_not_have(
        self, store: SessionStore, row: int
    ) -> None:
        parent = a_segment([1, 2, 3])
        middle = a_segment([4, 5, 6], parent)
        store.commit(Commit(add=(parent, middle)))
        wrong = a_segment([4], parent, row)
        refused(store, Commit(add=(wrong,)), parent.key)
        before = a_segment([4], middle, 3)  # the last row of the parent's parent
        refused(store, Commit(add=(before,)), middle.key)

    def test_a_segment_cannot_follow_one_of_another_root(self, store: SessionStore) -> None:
        parent = a_segment([1, 2, 3])
        store.commit(Commit(add=(parent,)))
        foreign = Segment.following(OTHER_ROOT, parent.key, 3, tokens([4]), 8)
        refused(store, Commit(add=(foreign,)), parent.key)

    @pytest.mark.parametrize("row", [0, 4])
    def test_a_cursor_cannot_stand_at_a_row_that_its_segment_does_not_have(
        self, store: SessionStore, row: int
    ) -> None:
        segment = a_segment([1, 2, 3])
        store.commit(Commit(add=(segment,)))
        refused(store, Commit(put=(a_session(at=segment, row=row),)), segment.key)

    def test_a_cursor_cannot_stand_in_a_segment_that_is_not_there(
        self, store: SessionStore
    ) -> None:
        refused(store, Commit(put=(a_session(at=a_segment([1])),)), a_segment([1]).key)

    def test_a_cursor_cannot_stand_in_a_segment_of_another_root(self, store: SessionStore) -> None:
        segment = a_segment([1, 2, 3])
        session = a_session(at=segment)
        foreign = evolve(session, key=SessionKey("t", OTHER_ROOT, "a"))
        refused(store, Commit(add=(segment,), put=(foreign,)), segment.key)

    def test_a_segment_cannot_be_dropped_while_a_child_stays(self, store: SessionStore) -> None:
        parent = a_segment([1, 2, 3])
        child = a_segment([4], parent)
        store.commit(Commit(add=(parent, child)))
        refused(store, Commit(drop=(parent.key,)), parent.key)

    def test_a_segment_cannot_be_dropped_while_a_session_stands_in_it(
        self, store: SessionStore
    ) -> None:
        segment = a_segment([1, 2, 3])
        store.commit(Commit(add=(segment,), put=(a_session(at=segment),)))
        refused(store, Commit(drop=(segment.key,)), segment.key)

    def test_a_segment_is_dropped_together_with_its_children_and_sessions_that_step_back(
        self, store: SessionStore
    ) -> None:
        parent = a_segment([1, 2, 3])
        child = a_segment([4], parent)
        store.commit(
            Commit(add=(parent, child), put=(a_session(at=child), a_session("b", at=child)))
        )
        back = a_session(at=None)
        change = Commit(drop=(parent.key, child.key), put=(back,), forget=(a_session("b").key,))
        store.commit(change)
        assert content(store.load()) == content(Catalogue((), (back,)))

    def test_dropping_and_forgetting_what_is_not_there_is_no_error(
        self, store: SessionStore
    ) -> None:
        store.commit(Commit(drop=(bytes(32),), forget=(a_session("nobody").key,)))
        assert store.load() == Catalogue()

    def test_what_is_dropped_and_added_at_once_stays(self, store: SessionStore) -> None:
        parent = a_segment([1, 2, 3])
        child = a_segment([4], parent)
        session = a_session(at=child)
        store.commit(Commit(add=(parent, child), put=(session,)))
        before = content(store.load())
        store.commit(
            Commit(drop=(parent.key,), add=(parent,), forget=(session.key,), put=(session,))
        )
        assert content(store.load()) == before

    def test_adding_a_segment_again_keeps_what_refers_to_it(self, store: SessionStore) -> None:
        parent = a_segment([1, 2, 3])
        child = a_segment([4], parent)
        store.commit(Commit(add=(parent, child)))
        store.commit(Commit(add=(evolve(parent, nbytes=99),)))
        assert [one.nbytes for one in store.load().segments] == [99, 8]

    def test_sessions_of_the_same_name_are_kept_apart_by_tenant_and_root(
        self, store: SessionStore
    ) -> None:
        sessions = tuple(
            evolve(a_session(), key=SessionKey(tenant, root, name), tools_digest=bytes([n]))
            for n, (tenant, root, name) in enumerate(
                [("t", ROOT, "a"), ("u", ROOT, "a"), ("t", OTHER_ROOT, "a"), ("t", ROOT, "b")]
            )
        )
        store.commit(Commit(put=sessions))
        store.commit(Commit(forget=(sessions[1].key,)))
        assert content(store.load()) == content(Catalogue((), (sessions[0], *sessions[2:])))

    @pytest.mark.parametrize(
        "spans",
        [
            [a_span("hello", [1, 2]), a_span("more", [3])],
            [a_span("hello", [1, 3])],
            [a_span("hell", [1, 2]), a_span("o", [])],
            [a_span("hello", [1, 2], "system")],
            [evolve(a_span("hello", [1, 2]), kind=SpanKind.CONTROL)],
            [a_span("before", []), a_span("hello", [1, 2])],
            [],
        ],
        ids=["longer", "other ids", "split", "other role", "other kind", "shifted", "none"],
    )
    def test_a_session_is_replaced_by_its_successor_whatever_of_it_changed(
        self, store: SessionStore, spans: list[Span]
    ) -> None:
        store.commit(Commit(put=(a_session(),)))
        after = a_session().succeeded(tuple(spans), None, b"other", 7.0)
        store.commit(Commit(put=(after,)))
        assert content(store.load()) == content(Catalogue((), (after,)))

    @pytest.mark.parametrize(
        "messages",
        [
            (HELLO, CALL, Message("tool", "found", tool_call_id="1")),
            (HELLO,),
            (HELLO, evolve(CALL, tool_calls=())),
            (evolve(HELLO, name="ada"), CALL),
            (),
        ],
        ids=["longer", "shorter", "other calls", "other name", "none"],
    )
    def test_messages_and_tools_are_those_of_the_successor_whatever_of_them_changed(
        self, store: SessionStore, reopen: Reopen, messages: tuple[Message, ...]
    ) -> None:
        before = a_session().succeeded((), None, b"", 1.0, (HELLO, CALL), '["tool"]')
        store.commit(Commit(put=(before,)))
        after = before.succeeded((), None, b"", 2.0, messages, '["another"]')
        store.commit(Commit(put=(after,)))
        assert reopen(store).load().sessions == (after,)

    def test_what_became_of_an_answers_turn_is_kept_until_it_is_taken_away(
        self, store: SessionStore, reopen: Reopen
    ) -> None:
        outcome = Outcome("length", 1.25, 2.5, 7, 5, 3)
        answer = evolve(CALL, turn="t1", outcome=outcome)
        before = a_session().succeeded((), None, b"", 1.0, (HELLO, answer))
        store.commit(Commit(put=(before,)))
        store = reopen(store)
        [found] = store.load().sessions
        assert [(one.turn, one.outcome) for one in found.messages] == [
            (None, None),
            ("t1", outcome),
        ]
        store.commit(Commit(put=(evolve(found, messages=(HELLO, answer.unfindable())),)))
        [found] = reopen(store).load().sessions
        assert [(one.turn, one.outcome) for one in found.messages] == [(None, None)] * 2

    def test_when_a_session_expires_and_what_it_used_is_kept(
        self, store: SessionStore, reopen: Reopen
    ) -> None:
        session = evolve(a_session(), expires=7.5, usage=Usage(1, 2, 3))
        session = evolve(session, trace=Trace(9, (((1, -0.5), (2, -2.0)), ((3, -0.25),))))
        store.commit(Commit(put=(session,)))
        assert reopen(store).load().sessions == (session,)

    def test_any_text_survives(self, store: SessionStore, reopen: Reopen) -> None:
        odd = "\x00 \ud800 \udfff \U0001f600 ' \" \n"
        session = Session(
            SessionKey(odd + "t", ROOT, odd + "n"),
            (a_span(odd, [0, 2**32 - 1], odd + "r"),),
            parent=odd,
            messages=(Message(odd, odd, odd, (ToolCall(odd, odd, odd),), odd),),
            tools=odd,
        )
        store.commit(Commit(put=(session,)))
        assert content(reopen(store).load()) == content(Catalogue((), (session,)))

    def test_the_secret_is_random_and_stays_the_same(
        self, store: SessionStore, make: Make, reopen: Reopen, tmp_path: Path
    ) -> None:
        salt = store.salt()
        assert len(salt) == 32
        store.commit(Commit(put=(a_session(),)))
        assert reopen(store).salt() == salt
        (tmp_path / "other").mkdir()
        other = make(tmp_path / "other")
        assert other.salt() != salt
        other.close()

    def test_a_closed_store_refuses_everything(self, store: SessionStore) -> None:
        store.close()
        store.close()
        for call in (store.load, store.salt, lambda: store.commit(Commit())):
            with pytest.raises(ValueError, match="closed"):
                call()
