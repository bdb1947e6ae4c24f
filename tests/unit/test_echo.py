"""What clients send back of answers: recognised only if it is the same."""

import pytest
from attrs import evolve

from agentcache.domain.conversation import Message, ToolCall
from agentcache.domain.echo import as_said, spoken
from agentcache.domain.registry import SessionRegistry
from agentcache.domain.session import Session, SessionKey

ROOT, TENANT = b"r" * 32, "default"
ASKED = Message("user", "Look!")
CALL = ToolCall("call_1", "look", '{"at":"here","n":1}')
CALLED = Message(
    "assistant", "Wait.", tool_calls=(CALL,), thought="hm", said="<t>hm</t>Wait.<c>…", turn="t1"
)
SPOKE = Message("assistant", "Hello.", thought="hm", said="<t>hm</t>Hello.", turn="t2")


def remembering(*messages: Message, name: str = "ada") -> tuple[SessionRegistry, Session]:
    registry = SessionRegistry()
    session = Session(SessionKey(TENANT, ROOT, name), messages=messages)
    registry.put(session)
    registry.check_integrity()
    return registry, session


def echoed(sent: Message, answer: Message, named: bool = False, tenant: str = TENANT) -> Message:
    registry, session = remembering(ASKED, answer)
    return as_said((ASKED, sent), registry, tenant, (ROOT,), session if named else None)[1]


def test_an_answer_that_called_is_found_by_the_id_of_its_call() -> None:
    arguments = '{ "n": 1, "at": "here" }'
    sent = Message("assistant", "Wait.", tool_calls=(evolve(CALL, arguments=arguments),))
    assert echoed(sent, CALLED) is CALLED


@pytest.mark.parametrize(
    "other",
    [
        evolve(CALLED, content="Go."),
        evolve(CALLED, thought="other"),
        evolve(CALLED, tool_calls=(evolve(CALL, id="call_2"),)),
        evolve(CALLED, tool_calls=(evolve(CALL, name="run"),)),
        evolve(CALLED, tool_calls=(evolve(CALL, arguments='{"at":"there","n":1}'),)),
        evolve(CALLED, tool_calls=(evolve(CALL, arguments="{"),)),
        evolve(CALLED, tool_calls=(CALL, CALL)),
    ],
)
def test_what_was_changed_on_the_way_is_what_the_client_says_now(other: Message) -> None:
    assert echoed(other, CALLED) is other


def test_nobody_elses_answer_is_found() -> None:
    assert echoed(evolve(CALLED, said=None), CALLED, tenant="other").said is None


def test_an_answer_without_calls_is_found_at_its_place_in_the_named_session() -> None:
    assert echoed(Message("assistant", "Hello."), SPOKE, named=True) is SPOKE
    assert echoed(Message("assistant", "Hello."), SPOKE, named=False).said is None
    assert echoed(Message("assistant", "Bye."), SPOKE, named=True).said is None


def test_white_space_is_no_content() -> None:
    answer = evolve(CALLED, content="\n")
    assert echoed(evolve(answer, content="", thought=""), answer) is answer


@pytest.mark.parametrize(("asked", "said"), [("Hi", "<c>{"), ("Bye", None)])
def test_an_answer_without_words_is_found_only_behind_the_same_question(
    asked: str, said: str | None
) -> None:
    registry, session = remembering(Message("user", "Hi"), Message("assistant", "", said="<c>{"))
    sent = (Message("user", asked), Message("assistant", ""))
    assert as_said(sent, registry, TENANT, (ROOT,), session)[1].said == said


def test_an_answer_is_rendered_as_it_was_said() -> None:
    assert spoken(CALLED) == Message("assistant", "<t>hm</t>Wait.<c>…")
    assert spoken(ASKED) is ASKED


def test_a_session_is_found_by_each_of_its_answers_until_they_are_gone() -> None:
    registry, session = remembering(ASKED, CALLED, ASKED, SPOKE)
    assert registry.answered(TENANT, (ROOT,), "t1") == (session,)
    fork = evolve(session, key=evolve(session.key, name="eve"))
    registry.put(fork)
    assert registry.answered(TENANT, (ROOT,), "t1") == (fork, session)
    shorter = evolve(session, messages=session.messages[:2])
    registry.put(shorter)
    registry.check_integrity()
    assert registry.answered(TENANT, (ROOT,), "t2") == (fork,)
    registry.remove(fork.key)
    registry.check_integrity()
    assert registry.answered(TENANT, (ROOT,), "t2") == ()
    assert registry.caller(TENANT, (ROOT,), "call_1") is CALLED
    registry.remove(session.key)
    registry.check_integrity()
    assert registry.caller(TENANT, (ROOT,), "call_1") is None
