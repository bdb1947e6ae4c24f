"""Any order of commits to a session store, against two dicts."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import TestCase

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentcache.domain.errors import CatalogueConflict
from agentcache.domain.segment import Segment
from agentcache.domain.session import Session, SessionKey
from agentcache.domain.tokens import Tokens
from agentcache.ports.session_store import Catalogue, Commit, SessionStore
from agentcache.testing import strategies
from agentcache.testing.catalogues import content
from agentcache.testing.strategies import ROOT

Make = Callable[[Path], SessionStore]
Reopen = Callable[[SessionStore], SessionStore]


def session_store_machine(make: Make, reopen: Reopen | None = None) -> type[TestCase]:
    """Any order of commits against two dicts: a test case, to be bound to a name in Test..."""

    class Machine(_SessionStoreMachine):
        def open(self) -> SessionStore:
            return make(Path(self.folder.name))

        def reopened(self) -> SessionStore:
            if reopen is not None:
                return reopen(self.store)
            self.store.close()
            return self.open()

    return Machine.TestCase


class _SessionStoreMachine(RuleBasedStateMachine):
    """Any order of commits, good and bad, and reopening, against two dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.store = self.open()
        self.segments: dict[bytes, Segment] = {}
        self.sessions: dict[SessionKey, Session] = {}

    def open(self) -> SessionStore:
        raise NotImplementedError

    def reopened(self) -> SessionStore:
        raise NotImplementedError

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @rule(data=st.data(), count=st.integers(1, 3))
    def grow(self, data: st.DataObject, count: int) -> None:
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
    def take_a_turn(self, data: st.DataObject) -> None:
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
    def drop(self, data: st.DataObject) -> None:
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
    def forget(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.sessions, key=repr)))
        self.store.commit(Commit(forget=(key,)))
        del self.sessions[key]

    @rule(ids=strategies.some_ids)
    def follow_nothing(self, ids: "Tokens[int]") -> None:
        orphan = Segment.following(ROOT, bytes(32), 1, ids, 0)
        with pytest.raises(CatalogueConflict):
            self.store.commit(Commit(add=(orphan,), forget=tuple(self.sessions)))

    @rule()
    def reopen(self) -> None:
        self.store = self.reopened()

    @invariant()
    def everything_committed_is_there_and_nothing_else(self) -> None:
        expected = Catalogue(tuple(self.segments.values()), tuple(self.sessions.values()))
        assert content(self.store.load()) == content(expected)
