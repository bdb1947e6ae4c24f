"""The session registry: by name, by what was said, by where a session stands."""

import pytest
from attrs import evolve
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agentcache.domain.errors import IntegrityError
from agentcache.domain.registry import SessionRegistry
from agentcache.domain.session import Cursor, Session, SessionKey
from agentcache.domain.spans import RenderedSpan, Span, SpanKind, matching_spans
from agentcache.domain.tokens import tokens

ROOT, OTHER_ROOT = b"r" * 32, b"o" * 32
ROLES = ("user", "assistant")


def _spans(text: str) -> tuple[Span, ...]:
    """A letter a span: lower case is the user's, upper case the assistant's."""
    return tuple(
        Span(SpanKind.CONTENT, ROLES[one.isupper()], one, tokens([ord(one)])) for one in text
    )


def _rendered(text: str) -> list[RenderedSpan]:
    return [RenderedSpan(span.kind, span.role, span.text) for span in _spans(text)]


def _session(name: str, text: str = "", at: bytes | None = None, root: bytes = ROOT) -> Session:
    cursor = Cursor(at, 1) if at else None
    return Session(SessionKey("default", root, name), _spans(text), cursor)


def _registry(*sessions: Session) -> SessionRegistry:
    registry = SessionRegistry()
    for session in sessions:
        registry.put(session)
    return registry


def test_a_session_is_found_by_its_name_until_it_is_removed() -> None:
    session = _session("a")
    registry = _registry(session)
    assert registry.get(session.key) is session
    assert registry.remove(session.key) is session
    assert registry.get(session.key) is None
    assert registry.remove(session.key) is None


def test_a_successor_takes_the_place_of_its_predecessor() -> None:
    before = _session("a", "xY")
    registry = _registry(before)
    after = evolve(before, spans=_spans("xYzW"))
    assert registry.put(after) is before
    assert list(registry) == [after]


def test_a_conversation_is_recognised_by_the_last_answer_it_repeats() -> None:
    registry = _registry(_session("a", "xY"), _session("b", "xYzW"))
    found = registry.recognise("default", (ROOT,), _rendered("xYzWn"))
    assert found is not None
    assert found.name == "b"
    shorter = registry.recognise("default", (ROOT,), _rendered("xYqQ"))
    assert shorter is not None


def test_what_only_users_said_is_not_recognised() -> None:
    assert _registry(_session("a", "xY")).recognise("default", (ROOT,), _rendered("x")) is None


def test_nothing_is_recognised_across_tenants_or_models() -> None:
    registry = _registry(_session("a", "xY"))
    assert registry.recognise("other", (ROOT,), _rendered("xY")) is None
    assert registry.recognise("default", (OTHER_ROOT,), _rendered("xY")) is None


def test_a_fork_is_recognised_when_the_session_it_came_from_is_gone() -> None:
    parent, fork = _session("parent", "xY"), _session("fork", "xY")
    registry = _registry(parent, fork)
    registry.remove(fork.key)
    assert registry.recognise("default", (ROOT,), _rendered("xYn")) is parent
    registry.put(fork)
    registry.remove(parent.key)
    assert registry.recognise("default", (ROOT,), _rendered("xYn")) is fork


def test_a_fork_that_went_another_way_leaves_the_first_way_recognised() -> None:
    parent, fork = _session("parent", "xYzW"), _session("fork", "xYzW")
    registry = _registry(parent, fork)
    registry.put(evolve(fork, spans=_spans("xYqQ")))
    assert registry.recognise("default", (ROOT,), _rendered("xYzWn")) is parent


def test_an_answer_that_was_taken_back_is_no_longer_recognised() -> None:
    session = _session("a", "xYzW")
    registry = _registry(session, evolve(session, spans=_spans("xY")))
    found = registry.recognise("default", (ROOT,), _rendered("xYzWn"))
    assert found is not None
    assert found.spans == _spans("xY")


def test_a_session_never_vanishes_while_it_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = _session("a", "xY", at=b"s"), []
    registry = _registry(before)
    replaced = registry._index_chains

    def watching(session: Session, old: Session | None) -> None:
        seen.append(registry.get(before.key))
        replaced(session, old)

    monkeypatch.setattr(SessionRegistry, "_index_chains", staticmethod(watching))
    registry.put(evolve(before, generation=1))
    assert seen
    assert None not in seen


def test_a_session_that_is_just_being_removed_gives_way_to_another_that_said_the_same() -> None:
    parent, fork = _session("parent", "xY"), _session("fork", "xY")
    registry = _registry(parent, fork)
    del registry._sessions[fork.key]  # what another thread may see in the middle of `remove`
    assert registry.recognise("default", (ROOT,), _rendered("xY")) is parent


def test_sessions_are_listed_by_the_segment_they_stand_in() -> None:
    one, other = _session("a", at=b"s"), _session("b", at=b"s")
    registry = _registry(one, other, _session("c"))
    assert {session.name for session in registry.at_segment(b"s")} == {"a", "b"}
    registry.put(evolve(one, cursor=Cursor(b"t", 2)))
    assert [session.name for session in registry.at_segment(b"s")] == ["b"]
    assert [session.name for session in registry.at_segment(b"t")] == ["a"]
    assert registry.at_segment(b"nowhere") == ()


def test_pinned_sessions_are_never_idle_and_others_are_in_the_order_of_use() -> None:
    registry = _registry(_session("a"), _session("b"), evolve(_session("p"), pinned=True))
    registry.touch(_session("a").key)
    registry.touch(_session("nobody").key)
    assert [session.name for session in registry.idle()] == ["b", "a"]


def test_a_name_is_elsewhere_when_it_has_a_session_under_another_root() -> None:
    registry = _registry(_session("a"), _session("b", root=OTHER_ROOT))
    assert not registry.is_elsewhere("default", (ROOT,), "a")
    assert registry.is_elsewhere("default", (OTHER_ROOT,), "a")
    assert registry.is_elsewhere("default", (ROOT,), "b")
    registry.remove(_session("b", root=OTHER_ROOT).key)
    assert not registry.is_elsewhere("default", (ROOT,), "b")


@pytest.mark.parametrize(
    "damage", ["cursor", "key", "chains", "stray chains", "names", "lost link", "double link"]
)
def test_damage_is_noticed(damage: str) -> None:
    session = _session("a", "xY", at=b"s")
    registry = _registry(session)
    (at,) = registry._by_chain
    if damage == "cursor":
        registry._at_segment.clear()
    elif damage == "key":
        registry._sessions[_session("b").key] = registry._sessions.pop(session.key)
        registry._at_segment[b"s"] = {_session("b").key}
    elif damage == "chains":
        registry._chains[session.key] = ()
    elif damage == "stray chains":
        registry._chains[_session("b").key] = ()
    elif damage == "names":
        registry._roots.clear()
    elif damage == "lost link":
        del registry._by_chain[at]
    else:
        registry._by_chain[at] = (session.key, session.key)
    with pytest.raises(IntegrityError):
        registry.check_integrity()


class RegistryMachine(RuleBasedStateMachine):
    """Against a list of sessions, the least recently used first."""

    keys = st.builds(
        SessionKey,
        st.sampled_from(["t", "u"]),
        st.sampled_from([ROOT, OTHER_ROOT]),
        st.sampled_from(["a", "b", "c"]),
    )
    words = st.text("xXyY", max_size=5)

    def __init__(self) -> None:
        super().__init__()
        self.registry = SessionRegistry()
        self.model: list[Session] = []

    @rule(key=keys, words=words, at=st.none() | st.sampled_from([b"1", b"2"]), pin=st.booleans())
    def put(self, key: SessionKey, words: str, at: bytes | None, pin: bool) -> None:
        cursor = Cursor(at, 1) if at else None
        session = Session(key, _spans(words), cursor, pinned=pin)
        assert self.registry.put(session) == self._take(key)
        self.model.append(session)

    @rule(key=keys, words=words)
    def go_on(self, key: SessionKey, words: str) -> None:
        before = self.registry.get(key)
        if before is not None:
            after = before.succeeded((*before.spans, *_spans(words)), before.cursor, b"", 1.0)
            assert self.registry.put(after) is before
            self._take(key)
            self.model.append(after)

    @rule(key=keys)
    def remove(self, key: SessionKey) -> None:
        assert self.registry.remove(key) == self._take(key)

    @rule(key=keys)
    def touch(self, key: SessionKey) -> None:
        self.registry.touch(key)
        session = self._take(key)
        if session is not None:
            self.model.append(session)

    @rule(key=keys, words=words)
    def recognise(self, key: SessionKey, words: str) -> None:
        rendered = _rendered(words)
        ours = [one for one in self.model if (one.key.tenant, one.key.root) == key_of(key)]
        best = max((_answers_in_common(one, rendered) for one in ours), default=0)
        found = self.registry.recognise(key.tenant, (key.root,), rendered)
        if best == 0:
            assert found is None
        else:
            assert found in ours
            assert _answers_in_common(found, rendered) == best

    @invariant()
    def every_index_is_that_of_the_list(self) -> None:
        self.registry.check_integrity()
        assert list(self.registry) == self.model
        assert len(self.registry) == len(self.model)
        assert list(self.registry.idle()) == [one for one in self.model if not one.pinned]
        for at in (b"1", b"2"):
            there = {one.key for one in self.model if one.cursor and one.cursor.key == at}
            assert {one.key for one in self.registry.at_segment(at)} == there
        for one in self.model:
            assert self.registry.get(one.key) is one
            roots = {two.key.root for two in self.model if two.key.name == one.key.name}
            tenants = {two.key.tenant for two in self.model if two.key.name == one.key.name}
            if len(tenants) == 1:
                elsewhere = self.registry.is_elsewhere(one.key.tenant, (one.key.root,), one.name)
                assert elsewhere == (len(roots) > 1)

    def _take(self, key: SessionKey) -> Session | None:
        found = next((one for one in self.model if one.key == key), None)
        if found is not None:
            self.model.remove(found)
        return found


def key_of(key: SessionKey) -> tuple[str, bytes]:
    """Within which sessions may recognise each other."""
    return key.tenant, key.root


def _answers_in_common(session: Session | None, rendered: list[RenderedSpan]) -> int:
    """How many spans agree, up to the last one that is an answer."""
    assert session is not None
    agreed = matching_spans(session.spans, rendered)
    ends = [n for n, span in enumerate(session.spans[:agreed], 1) if span.role == "assistant"]
    return max(ends, default=0)


TestRegistry = RegistryMachine.TestCase
