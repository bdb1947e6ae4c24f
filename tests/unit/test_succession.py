"""Which session a turn leaves behind, and what it becomes."""

import pytest
from attrs import evolve

from agentcache.domain.answer import Reading
from agentcache.domain.conversation import Message, Outcome
from agentcache.domain.registry import SessionRegistry
from agentcache.domain.request import Identity, Prompt, TurnRequest
from agentcache.domain.session import Cursor, Session, SessionKey, Usage
from agentcache.domain.spans import Span, SpanKind, concatenated
from agentcache.domain.tokens import tokens
from agentcache.succession import continues, session_key, successor

ROOT = b"root"


def spans(*texts: str) -> tuple[Span, ...]:
    return tuple(Span(SpanKind.CONTENT, "user", one, tokens((len(one),))) for one in texts)


def key(name: str) -> SessionKey:
    return SessionKey("default", ROOT, name)


def asking(identity: Identity, *texts: str, session: str | None = None) -> TurnRequest:
    prompt = Prompt(spans(*texts), concatenated(spans(*texts)), tools_digest=b"tools")
    known = None if session is None else key(session)
    return TurnRequest("id", identity, ROOT, prompt, session=known)


@pytest.fixture
def registry() -> SessionRegistry:
    """One session that was given its name, and one whose name was hinted at."""
    registry = SessionRegistry()
    registry.put(Session(key("ada"), spans("a", "b")))
    registry.put(Session(key("~hint"), spans("a", "b")))
    return registry


@pytest.mark.parametrize("texts", [("a", "b", "c"), ("other",)])
def test_an_exclusive_name_is_its_own_session(
    registry: SessionRegistry, texts: tuple[str, ...]
) -> None:
    request = asking(Identity("ada", exclusive=True), *texts, session="~hint")
    assert session_key(request, registry) == key("ada")


@pytest.mark.parametrize("name", ["hint", "another", None])
def test_anybody_else_goes_on_with_what_is_wholly_continued(
    registry: SessionRegistry, name: str | None
) -> None:
    request = asking(Identity(name), "a", "b", "c", session="~hint")
    assert session_key(request, registry) == key("~hint")


def test_a_divergence_is_a_branch_of_its_own(registry: SessionRegistry) -> None:
    request = asking(Identity("hint"), "a", "not b", session="~hint")
    assert session_key(request, registry) == key("~id")


def test_a_hint_that_nobody_uses_yet_names_the_branch(registry: SessionRegistry) -> None:
    request = asking(Identity("another"), "a", "not b", session="~hint")
    assert session_key(request, registry) == key("~another")


def test_without_a_name_it_goes_by_its_turn(registry: SessionRegistry) -> None:
    assert session_key(asking(Identity(), "new"), registry) == key("~id")


def test_a_session_that_was_forgotten_meanwhile_is_not_continued(
    registry: SessionRegistry,
) -> None:
    registry.remove(key("~hint"))
    request = asking(Identity(), "a", "b", "c", session="~hint")
    assert session_key(request, registry) == key("~id")


def test_a_successor_is_what_was_said_and_where_it_stands() -> None:
    before = Session(key("ada"), spans("a"), pinned=True, created=1.0, used=1.0, generation=4)
    after = successor(
        key("ada"), before, asking(Identity(), "a"), spans("a", "b"), Cursor(b"k", 2), 9.0
    )
    assert (after.spans, after.cursor, after.tools_digest) == (
        spans("a", "b"),
        Cursor(b"k", 2),
        b"tools",
    )
    assert (after.pinned, after.created, after.used, after.generation) == (True, 1.0, 9.0, 5)


def test_a_successors_messages_are_those_of_the_client_and_the_answer() -> None:
    asked = (Message("system", "be brief"), Message("user", "a"))
    request = evolve(asking(Identity(), "a"), messages=asked, tools="[1]")
    after = successor(key("ada"), None, request, spans("a", "b"), None, 9.0, "b ")
    assert after.messages == (*asked, Message("assistant", "b "))
    assert after.tools == "[1]"
    unanswered = successor(key("ada"), after, request, spans("a"), None, 9.0, None)
    assert unanswered.messages == asked


@pytest.mark.parametrize("findable", [True, False])
def test_how_a_turn_went_stays_with_an_answer_that_can_be_looked_up(findable: bool) -> None:
    request = evolve(asking(Identity(), "a"), reading=Reading(seed="id"), findable=findable)
    outcome = Outcome("stop", 8.0, 9.0, 1, 0, 2)
    after = successor(key("ada"), None, request, spans("a", "b"), None, 9.0, "b", outcome=outcome)
    [answer] = after.messages
    assert (answer.turn, answer.outcome) == (("id", outcome) if findable else (None, None))


def test_a_successor_has_used_what_its_turn_took() -> None:
    after = successor(key("ada"), None, asking(Identity(), "a", "b"), spans("a"), None, 9.0)
    assert after.usage == Usage(hits=0, prompt=2, cached=0)
    after = successor(key("ada"), after, asking(Identity(), "a"), spans("a"), None, 9.0, cached=1)
    assert after.usage == Usage(hits=1, prompt=3, cached=1)


def test_the_first_of_its_name_is_created_now() -> None:
    after = successor(key("ada"), None, asking(Identity(), "a"), spans("a"), None, 9.0)
    assert (after.key, after.created, after.used, after.generation) == (key("ada"), 9.0, 9.0, 1)


@pytest.mark.parametrize(
    ("said", "goes_on"),
    [(("a", "b"), True), (("a", "b", "c"), True), (("a",), False), (("a", "x", "b"), False)],
)
def test_a_session_is_continued_by_all_that_was_said_in_it(
    said: tuple[str, ...], goes_on: bool
) -> None:
    assert continues(Session(key("ada"), spans("a", "b")), spans(*said)) is goes_on
