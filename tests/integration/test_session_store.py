"""The contract of session stores, kept by every adapter."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from attrs import evolve
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentcache.adapters.disk.catalogue import SqliteSessionStore
from agentcache.adapters.memory.session_store import MemorySessionStore
from agentcache.domain.conversation import Message, ToolCall
from agentcache.domain.errors import CatalogueConflict
from agentcache.domain.segment import Segment
from agentcache.domain.session import Cursor, Session, SessionKey, Usage
from agentcache.domain.spans import Span, SpanKind
from agentcache.domain.tokens import tokens
from agentcache.ports.session_store import Catalogue, Commit, SessionStore
from agentcache.testing import strategies
from agentcache.testing.strategies import OTHER_ROOT, ROOT

Reopen = Callable[[SessionStore], SessionStore]


def disk_store(folder: Path) -> SqliteSessionStore:
    return SqliteSessionStore.open(folder / "catalogue.sqlite3")


def memory_store(_folder: Path) -> MemorySessionStore:
    return MemorySessionStore()


def reopened(store: SessionStore) -> SessionStore:
    """The store as it is after a restart."""
    store.close()
    if isinstance(store, SqliteSessionStore):
        return SqliteSessionStore.open(store.path)
    assert isinstance(store, MemorySessionStore)
    return store.reopened()


@pytest.fixture(params=[disk_store, memory_store], ids=["disk", "memory"])
def store(request, tmp_path):
    opened = request.param(tmp_path)
    yield opened
    opened.close()


def content(catalogue: Catalogue) -> tuple[dict, dict]:
    """Everything in `catalogue`, the ids included, which values do not compare."""
    segments = {one.key: (one, one.ids.tolist()) for one in catalogue.segments}
    sessions = {
        one.key: (one, [span.ids.tolist() for span in one.spans]) for one in catalogue.sessions
    }
    assert len(segments) == len(catalogue.segments)
    assert len(sessions) == len(catalogue.sessions)
    return segments, sessions


def a_segment(ids: list[int], parent: Segment | None = None, row: int | None = None) -> Segment:
    if parent is None:
        return Segment.following(ROOT, None, 0, tokens(ids), 8 * len(ids))
    start = parent.stop if row is None else row
    return Segment.following(parent.root, parent.key, start, tokens(ids), 8 * len(ids))


def a_session(name: str = "a", at: Segment | None = None, row: int | None = None) -> Session:
    cursor = Cursor(at.key, at.stop if row is None else row) if at else None
    return Session(SessionKey("t", ROOT, name), (a_span("hello", [1, 2]),), cursor, b"tools")


def a_span(text: str, ids: list[int], role: str = "user") -> Span:
    return Span(SpanKind.CONTENT, role, text, tokens(ids))


def refused(store: SessionStore, change: Commit, key: bytes) -> None:
    """`change` is refused because of segment `key`, and nothing of it was done."""
    before = content(store.load())
    with pytest.raises(CatalogueConflict) as caught:
        store.commit(change)
    assert caught.value.key == key
    assert content(store.load()) == before


def test_a_new_store_is_empty(store):
    assert store.load() == Catalogue()


def test_what_was_committed_is_there_after_reopening(store):
    parent = a_segment([1, 2, 3])
    child = a_segment([4], parent, 2)
    session = a_session(at=child)
    store.commit(Commit(add=(parent, child), put=(session,)))
    expected = content(Catalogue((parent, child), (session,)))
    assert content(store.load()) == expected
    assert content(reopened(store).load()) == expected


def test_parents_come_before_their_children_whatever_the_order_they_were_added_in(store):
    parent = a_segment([1, 2, 3])
    child = a_segment([4], parent)
    grandchild = a_segment([5], child)
    store.commit(Commit(add=(grandchild, parent, child)))
    assert [one.key for one in store.load().segments] == [parent.key, child.key, grandchild.key]


def test_a_segment_cannot_be_added_without_its_parent(store):
    parent = a_segment([1, 2, 3])
    child = a_segment([4], parent)
    sibling = a_segment([7])
    refused(store, Commit(add=(sibling, child)), parent.key)


@pytest.mark.parametrize("row", [4, 9])
def test_a_segment_cannot_follow_a_row_that_its_parent_does_not_have(store, row):
    parent = a_segment([1, 2, 3])
    middle = a_segment([4, 5, 6], parent)
    store.commit(Commit(add=(parent, middle)))
    wrong = a_segment([4], parent, row)
    refused(store, Commit(add=(wrong,)), parent.key)
    before = a_segment([4], middle, 3)  # the last row of the parent's parent
    refused(store, Commit(add=(before,)), middle.key)


def test_a_segment_cannot_follow_one_of_another_root(store):
    parent = a_segment([1, 2, 3])
    store.commit(Commit(add=(parent,)))
    foreign = Segment.following(OTHER_ROOT, parent.key, 3, tokens([4]), 8)
    refused(store, Commit(add=(foreign,)), parent.key)


@pytest.mark.parametrize("row", [0, 4])
def test_a_cursor_cannot_stand_at_a_row_that_its_segment_does_not_have(store, row):
    segment = a_segment([1, 2, 3])
    store.commit(Commit(add=(segment,)))
    refused(store, Commit(put=(a_session(at=segment, row=row),)), segment.key)


def test_a_cursor_cannot_stand_in_a_segment_that_is_not_there(store):
    refused(store, Commit(put=(a_session(at=a_segment([1])),)), a_segment([1]).key)


def test_a_cursor_cannot_stand_in_a_segment_of_another_root(store):
    segment = a_segment([1, 2, 3])
    session = a_session(at=segment)
    foreign = evolve(session, key=SessionKey("t", OTHER_ROOT, "a"))
    refused(store, Commit(add=(segment,), put=(foreign,)), segment.key)


def test_a_segment_cannot_be_dropped_while_a_child_stays(store):
    parent = a_segment([1, 2, 3])
    child = a_segment([4], parent)
    store.commit(Commit(add=(parent, child)))
    refused(store, Commit(drop=(parent.key,)), parent.key)


def test_a_segment_cannot_be_dropped_while_a_session_stands_in_it(store):
    segment = a_segment([1, 2, 3])
    store.commit(Commit(add=(segment,), put=(a_session(at=segment),)))
    refused(store, Commit(drop=(segment.key,)), segment.key)


def test_a_segment_is_dropped_together_with_its_children_and_sessions_that_step_back(store):
    parent = a_segment([1, 2, 3])
    child = a_segment([4], parent)
    store.commit(Commit(add=(parent, child), put=(a_session(at=child), a_session("b", at=child))))
    back = a_session(at=None)
    change = Commit(drop=(parent.key, child.key), put=(back,), forget=(a_session("b").key,))
    store.commit(change)
    assert content(store.load()) == content(Catalogue((), (back,)))


def test_dropping_and_forgetting_what_is_not_there_is_no_error(store):
    store.commit(Commit(drop=(bytes(32),), forget=(a_session("nobody").key,)))
    assert store.load() == Catalogue()


def test_what_is_dropped_and_added_at_once_stays(store):
    parent = a_segment([1, 2, 3])
    child = a_segment([4], parent)
    session = a_session(at=child)
    store.commit(Commit(add=(parent, child), put=(session,)))
    before = content(store.load())
    store.commit(Commit(drop=(parent.key,), add=(parent,), forget=(session.key,), put=(session,)))
    assert content(store.load()) == before


def test_adding_a_segment_again_keeps_what_refers_to_it(store):
    parent = a_segment([1, 2, 3])
    child = a_segment([4], parent)
    store.commit(Commit(add=(parent, child)))
    store.commit(Commit(add=(evolve(parent, nbytes=99),)))
    assert [one.nbytes for one in store.load().segments] == [99, 8]


def test_sessions_of_the_same_name_are_kept_apart_by_tenant_and_root(store):
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
def test_a_session_is_replaced_by_its_successor_whatever_of_it_changed(store, spans):
    store.commit(Commit(put=(a_session(),)))
    after = a_session().succeeded(tuple(spans), None, b"other", 7.0)
    store.commit(Commit(put=(after,)))
    assert content(store.load()) == content(Catalogue((), (after,)))


HELLO = Message("user", "hello")
CALL = Message("assistant", "", tool_calls=(ToolCall("1", "search", '{"for": "x"}'),))


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
def test_messages_and_tools_are_those_of_the_successor_whatever_of_them_changed(store, messages):
    before = a_session().succeeded((), None, b"", 1.0, (HELLO, CALL), '["tool"]')
    store.commit(Commit(put=(before,)))
    after = before.succeeded((), None, b"", 2.0, messages, '["another"]')
    store.commit(Commit(put=(after,)))
    assert reopened(store).load().sessions == (after,)


def test_when_a_session_expires_and_what_it_used_is_kept(store):
    session = evolve(a_session(), expires=7.5, usage=Usage(1, 2, 3))
    store.commit(Commit(put=(session,)))
    assert reopened(store).load().sessions == (session,)


def test_any_text_survives(store):
    odd = "\x00 \ud800 \udfff \U0001f600 ' \" \n"
    session = Session(
        SessionKey(odd + "t", ROOT, odd + "n"),
        (a_span(odd, [0, 2**32 - 1], odd + "r"),),
        parent=odd,
        messages=(Message(odd, odd, odd, (ToolCall(odd, odd, odd),), odd),),
        tools=odd,
    )
    store.commit(Commit(put=(session,)))
    assert content(reopened(store).load()) == content(Catalogue((), (session,)))


def test_the_secret_is_random_and_stays_the_same(store, tmp_path):
    salt = store.salt()
    assert len(salt) == 32
    store.commit(Commit(put=(a_session(),)))
    assert reopened(store).salt() == salt
    (tmp_path / "other").mkdir()
    other = disk_store if isinstance(store, SqliteSessionStore) else memory_store
    assert other(tmp_path / "other").salt() != salt


def test_a_closed_store_refuses_everything(store):
    store.close()
    store.close()
    for call in (store.load, store.salt, lambda: store.commit(Commit())):
        with pytest.raises(ValueError, match="closed"):
            call()


class SessionStoreMachine(RuleBasedStateMachine):
    """Any order of commits, good and bad, and reopening, against two dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.store = self.open()
        self.segments: dict[bytes, Segment] = {}
        self.sessions: dict[SessionKey, Session] = {}

    def open(self) -> SessionStore:
        raise NotImplementedError

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @rule(data=st.data(), count=st.integers(1, 3))
    def grow(self, data, count):
        known = list(self.segments.values())
        new: list[Segment] = []
        for _ in range(count):
            new.append(data.draw(strategies.children(known + new)))
        session = data.draw(strategies.sessions(known + new))
        added = data.draw(st.permutations(new))
        self.store.commit(Commit(add=tuple(added), put=(session,)))
        self.segments |= {one.key: one for one in added}  # of one key, the last
        self.sessions[session.key] = session

    @rule(data=st.data())
    @precondition(lambda self: self.sessions)
    def take_a_turn(self, data):
        before = self.sessions[data.draw(st.sampled_from(sorted(self.sessions, key=repr)))]
        kept = before.spans[: data.draw(st.integers(0, len(before.spans)))]
        spans = kept + tuple(data.draw(st.lists(strategies.spans, max_size=4)))
        cursor = data.draw(strategies.cursors(list(self.segments.values())))
        messages = tuple(data.draw(st.lists(strategies.messages, max_size=3)))
        messages = before.messages[: data.draw(st.integers(0, 4))] + messages
        now, tools = data.draw(strategies.times), data.draw(strategies.texts)
        after = before.succeeded(spans, cursor, b"", now, messages, tools)
        self.store.commit(Commit(put=(after,)))
        self.sessions[after.key] = after

    @rule(data=st.data())
    @precondition(lambda self: self.segments)
    def drop(self, data):
        keys = data.draw(st.sets(st.sampled_from(sorted(self.segments)), min_size=1))
        referred = {one.parent for key, one in self.segments.items() if key not in keys}
        referred |= {one.cursor.key for one in self.sessions.values() if one.cursor}
        if referred & keys:
            with pytest.raises(CatalogueConflict) as caught:
                self.store.commit(Commit(drop=tuple(keys), put=()))
            assert caught.value.key in referred & keys
        else:
            self.store.commit(Commit(drop=tuple(keys)))
            self.segments = {k: one for k, one in self.segments.items() if k not in keys}

    @rule(data=st.data())
    @precondition(lambda self: self.sessions)
    def forget(self, data):
        key = data.draw(st.sampled_from(sorted(self.sessions, key=repr)))
        self.store.commit(Commit(forget=(key,)))
        del self.sessions[key]

    @rule(ids=strategies.some_ids)
    def follow_nothing(self, ids):
        orphan = Segment.following(ROOT, bytes(32), 1, ids, 0)
        with pytest.raises(CatalogueConflict):
            self.store.commit(Commit(add=(orphan,), forget=tuple(self.sessions)))

    @rule()
    def reopen(self):
        self.store = reopened(self.store)

    @invariant()
    def everything_committed_is_there_and_nothing_else(self):
        expected = Catalogue(tuple(self.segments.values()), tuple(self.sessions.values()))
        assert content(self.store.load()) == content(expected)


class DiskMachine(SessionStoreMachine):
    def open(self):
        return disk_store(Path(self.folder.name))


class MemoryMachine(SessionStoreMachine):
    def open(self):
        return memory_store(Path(self.folder.name))


TestDiskSessionStoreMachine = DiskMachine.TestCase
TestMemorySessionStoreMachine = MemoryMachine.TestCase
