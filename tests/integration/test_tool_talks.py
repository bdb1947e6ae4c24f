"""A long conversation with tools goes on from the tokens that were sampled, call by call."""

import asyncio
import json
from collections.abc import Sequence

from agentcache.domain.answer import Tools
from agentcache.domain.conversation import Conversation, Message, ToolCall
from agentcache.domain.events import Delta, Ended
from agentcache.domain.request import Identity, Sampling
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
