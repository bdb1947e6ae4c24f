"""Chat completions beyond text: tools, structure, thoughts, log-probabilities."""

import json
from typing import Any

import pytest

from agentcache.domain.answer import AnswerFormat, Reading
from agentcache.domain.events import Delta, Ended
from agentcache.domain.logprobs import Logprobs
from agentcache.domain.request import Finish
from agentcache.domain.structure import ANY_OBJECT, CalledTools, JsonAnswer
from agentcache.domain.tool_prompt import CALLS, parse_calls
from tests.scripted_service import ScriptedService, ask, frames

pytestmark = pytest.mark.anyio
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
NAMED = {"type": "function", "function": {"name": "look"}}
READING = Reading(
    AnswerFormat(("<think>", "</think>"), CALLS, parse_calls), (TOOL,), "turn", opened=True
)
CALL = '<tool_call>{"name": "look", "arguments": {"at": "é"}}</tool_call>'
ENDED = Ended(Finish.STOP, 7, 5, 9)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def saying(*texts: str, finish: Finish = Finish.STOP) -> ScriptedService:
    ended = Ended(finish, 7, 5, 9)
    return ScriptedService((*(Delta(text, 1) for text in texts), ended), reading=READING)


async def streamed(service: ScriptedService, **fields: object) -> list[Any]:
    response = await ask(service, stream=True, **fields)
    found = frames(response.text)
    assert found[-1] == "[DONE]"
    return [frame["choices"][0] for frame in found[:-1]]


async def test_a_call_is_told_with_its_id_and_the_reason() -> None:
    response = (await ask(saying("hm</think>Wait.", CALL), tools=[TOOL])).json()
    choice = response["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert (message["content"], message["reasoning_content"]) == ("Wait.", "hm")
    [call] = message["tool_calls"]
    assert (call["id"], call["type"]) == (READING.call_id(0), "function")
    assert call["function"]["name"] == "look"
    assert json.loads(call["function"]["arguments"]) == {"at": "é"}


async def test_an_answer_that_only_calls_has_no_content() -> None:
    message = (await ask(saying("</think>", CALL))).json()["choices"][0]["message"]
    assert message["content"] is None
    assert "reasoning_content" not in message


async def test_a_plain_answer_has_neither_calls_nor_thoughts() -> None:
    message = (await ask(ScriptedService())).json()["choices"][0]["message"]
    assert message.keys() == {"role", "content", "refusal"}


async def test_a_stream_of_calls_has_id_type_and_name_first_and_an_index_from_0() -> None:
    choices = await streamed(saying("h", "m</thi", "nk>Wait.", CALL[:20], CALL[20:], CALL))
    deltas = [choice["delta"] for choice in choices]
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == "hm"
    assert "".join(delta.get("content") or "" for delta in deltas) == "Wait."
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [call["index"] for call in calls] == [0, 1]
    assert [call["id"] for call in calls] == [READING.call_id(0), READING.call_id(1)]
    assert {call["type"] for call in calls} == {"function"}
    assert json.loads(calls[0]["function"]["arguments"]) == {"at": "é"}
    assert choices[-1]["finish_reason"] == "tool_calls"


async def test_an_answer_that_was_cut_ends_by_length_whatever_it_called() -> None:
    choices = await streamed(saying("</think>", CALL, finish=Finish.LENGTH))
    assert choices[-1]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("fields", "structure"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, None),
        ({"tool_choice": "none"}, None),
        ({"tool_choice": "required"}, CalledTools((), several=True)),
        (
            {"tool_choice": "required", "parallel_tool_calls": False},
            CalledTools((), several=False),
        ),
        ({"tool_choice": NAMED}, CalledTools(("look",), several=True)),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "required", "tools": [NAMED]},
                }
            },
            CalledTools(("look",), several=True),
        ),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [NAMED]},
                }
            },
            None,
        ),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, JsonAnswer(ANY_OBJECT, calls=True)),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "strict": True, "schema": {"type": "null"}},
                },
                "tool_choice": "none",
            },
            JsonAnswer({"type": "null"}, calls=False),
        ),
    ],
)
async def test_what_an_answer_has_to_be_is_passed_on(
    fields: dict[str, object], structure: object
) -> None:
    service = ScriptedService()
    assert (await ask(service, tools=[TOOL], **fields)).status_code == 200
    assert service.asks[0].structure == structure


async def test_tools_that_must_not_be_called_are_shown_and_not_read() -> None:
    service = ScriptedService()
    await ask(service, tools=[TOOL], tool_choice="none")
    assert service.asks[0].conversation.tools == (TOOL,)
    assert service.asks[0].tools == ()


async def test_how_much_to_think_is_passed_on() -> None:
    service = ScriptedService()
    await ask(service, reasoning_effort="low")
    assert service.asks[0].conversation.effort == "low"


async def test_thoughts_and_calls_that_come_back_are_passed_on() -> None:
    service = ScriptedService()
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    answer = {
        "role": "assistant",
        "content": None,
        "tool_calls": [call],
        "reasoning_content": "hm",
    }
    result = {"role": "tool", "tool_call_id": "call_1", "content": "x"}
    await ask(service, messages=[{"role": "user", "content": "a"}, answer, result])
    sent = service.asks[0].conversation.messages[1]
    assert (sent.thought, sent.tool_calls[0].id, sent.content) == ("hm", "call_1", "")


async def test_penalties_and_biases_are_passed_on() -> None:
    service = ScriptedService()
    bias = {"7": -100, "8": 1.5}
    await ask(service, presence_penalty=1, frequency_penalty=-0.5, logit_bias=bias)
    sampling = service.asks[0].sampling
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -0.5)
    assert sampling.logit_bias == ((7, -100), (8, 1.5))


@pytest.mark.parametrize(
    ("fields", "asked"),
    [({}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 3}, 3)],
)
async def test_log_probabilities_are_asked_for(
    fields: dict[str, object], asked: int | None
) -> None:
    service = ScriptedService()
    await ask(service, **fields)
    assert service.asks[0].sampling.logprobs == asked


LIKELY = ((0xE2, Logprobs(-0.5, ((0xE2, -0.5), (97, -1.5)))), (97, Logprobs(-1.0, ())))


@pytest.mark.parametrize("stream", [False, True])
async def test_log_probabilities_are_told_as_text_and_bytes(stream: bool) -> None:
    service = ScriptedService((Delta("€a", 2, LIKELY), ENDED))
    response = await ask(service, logprobs=True, top_logprobs=2, stream=stream)
    if stream:
        told = frames(response.text)[1]["choices"][0]["logprobs"]
    else:
        told = response.json()["choices"][0]["logprobs"]
    first, second = told["content"]
    assert (first["token"], first["logprob"], first["bytes"]) == ("\ufffd", -0.5, [0xE2])
    assert [one["bytes"] for one in first["top_logprobs"]] == [[0xE2], [97]]
    assert (second["token"], second["top_logprobs"]) == ("a", [])
