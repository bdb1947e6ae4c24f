"""A long conversation with tools goes on from the tokens that were sampled, call by call."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from agentcache.adapters.http.hearing import heard_out
from agentcache.adapters.memory.tokenizer import VOCABULARY, MemoryTokenizer
from agentcache.domain.answer import Tools
from agentcache.domain.conversation import Conversation, Message, ToolCall
from agentcache.domain.events import Delta, Ended
from agentcache.domain.request import Identity, Sampling
from agentcache.domain.spans import RenderedSpan, SpanKind
from agentcache.domain.structure import CalledTools
from agentcache.service import Ask, Service
from tests.whole_service import whole_service

LOOK: Tools = (
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {
                "type": "object",
                "properties": {"at": {"type": "string", "maxLength": 8}},
                "required": ["at"],
                "additionalProperties": False,
            },
        },
    },
)
SYSTEM = Message("system", "You look at things. " * 20)


def as_a_client_sends_it(message: Message) -> Message:
    """Arguments parsed and written anew; what the model thought is gone."""
    calls = tuple(
        ToolCall(call.id, call.name, json.dumps(json.loads(call.arguments), indent=1))
        for call in message.tool_calls
    )
    return Message("assistant", message.content, tool_calls=calls)


async def turn(
    service: Service, identity: Identity, messages: Sequence[Message], seed: int
) -> tuple[Message, int, Ended]:
    """The answer, the tokens served from the cache, and how it ended."""
    ask = Ask(
        identity,
        Conversation(tuple(messages), LOOK),
        Sampling(seed=seed),
        max_tokens=400,
        structure=CalledTools(several=False),
    )
    running = await service.begin(ask)
    text, ended = "", None
    async for event in running:
        text += event.text if isinstance(event, Delta) else ""
        ended = event if isinstance(event, Ended) else None
    assert ended is not None
    return running.reading.message(text), running.admitted.cached, ended


async def share_of_old_tokens(service: Service, identity: Identity) -> float:
    """Of all tokens that were there before, in ten turns: how many were served from the cache."""
    messages: list[Message] = [SYSTEM, Message("user", "Look here.")]
    before = served = known = 0
    for number in range(10):
        answer, cached, ended = await turn(service, identity, messages, number)
        assert answer.tool_calls, answer
        served, known = served + cached, known + before
        before = ended.prompt + ended.completion
        call = answer.tool_calls[0]
        messages += [
            as_a_client_sends_it(answer),
            Message("tool", f"result {number}", tool_call_id=call.id),
        ]
    return served / known


def test_an_agent_goes_on_from_its_own_calls() -> None:
    with whole_service() as whole:
        share = asyncio.run(share_of_old_tokens(whole.service, Identity("ada", exclusive=True)))
    assert share >= 0.97


def test_so_does_a_client_without_a_name() -> None:
    with whole_service() as whole:
        share = asyncio.run(share_of_old_tokens(whole.service, Identity()))
    assert share >= 0.97


CALL = MemoryTokenizer().encode(RenderedSpan(SpanKind.CONTROL, "", "<tool_call>"))[0]
NOTHING_ELSE = tuple((token, -100.0) for token in range(VOCABULARY) if token != CALL)


def spoken(message: Message) -> list[Message]:
    return [message, Message("user", "Go on.")]


async def after_a_cut(service: Service, identity: Identity) -> tuple[int, int, Message]:
    """How many tokens there were after an answer that was cut within a call, how many of these were
    not computed again in the next turn, and what was told of it.
    """

    async def say(messages: Sequence[Message], **sampling: Any) -> tuple[Message, int, Ended]:
        talk = Conversation((SYSTEM, *messages), LOOK)
        ask = Ask(identity, talk, Sampling(temperature=0, **sampling), max_tokens=20)
        running = await service.begin(ask)
        heard = await heard_out(running)
        assert not heard.calls
        return Message("assistant", heard.text), running.admitted.cached, heard.ended

    messages = [Message("user", "Hello.")]
    answer, _, _ = await say(messages)
    messages += spoken(answer)
    cut, _, ended = await say(messages, logit_bias=NOTHING_ELSE)
    messages += spoken(cut)
    _, cached, _ = await say(messages)
    return ended.prompt + ended.completion, cached, cut


@pytest.mark.parametrize(
    "identity", [Identity("ada", exclusive=True), Identity("thread"), Identity()], ids=str
)
def test_a_call_that_was_cut_off_is_not_told_and_gone_on_from(identity: Identity) -> None:
    with whole_service() as whole:
        before, cached, cut = asyncio.run(after_a_cut(whole.service, identity))
    assert cut.content == ""
    assert cached >= before - 1  # the last token was not run yet
