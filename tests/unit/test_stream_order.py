"""The order of events in every dialect's streams, whatever is said and however it ends."""

import json
from collections.abc import Iterator
from itertools import pairwise
from random import Random
from typing import Any

import httpx
import pytest
from attrs import evolve
from structlog.testing import capture_logs

from agentcache.adapters.http.app import create_app
from agentcache.adapters.http.edge import Edge
from agentcache.domain.answer import AnswerFormat, Reading
from agentcache.domain.errors import TurnCancelled, Unavailable
from agentcache.domain.events import Delta, Ended
from agentcache.domain.request import Finish
from agentcache.domain.tool_prompt import CALLS, parse_calls
from tests.scripted_service import Said as Event
from tests.scripted_service import ScriptedService, client_of
from tests.stream_grammars import CHECKS, Said
from tests.whole_service import whole_service

pytestmark = pytest.mark.anyio
SCRIPTED, GENERATED = 1000, 60  # streams of each dialect, and of each dialect and way to ask
SCHEMA = {
    "type": "object",
    "properties": {"at": {"type": "string", "maxLength": 8}},
    "required": ["at"],
    "additionalProperties": False,
}
FUNCTION = {"name": "look", "description": "Look.", "parameters": SCHEMA}
TOOL: dict[str, Any] = {"type": "function", "function": FUNCTION}
READING = Reading(AnswerFormat(("<think>", "</think>"), CALLS, parse_calls), (TOOL,), "turn")
PARTS = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<thi", "<tool_", "\n", " ", "{", "}",
    "so", "hm é", "\N{GRINNING FACE}", '"', '{"name": "look", "arguments": {}}',
    '<tool_call>{"name": "look", "arguments": {"at": "é"}}</tool_call>',
    '<tool_call>[{"name": "look", "arguments": {}}, {"name": "look", "arguments": {"a": 1e5}}]'
    "</tool_call>",
    '<tool_call>{"name": "look", "arguments": "{}"}</tool_call>',
    '<tool_call>{"name": "look", "arguments": {"at": NaN}}</tool_call>',
    '<tool_call>{"name": "look", "arguments": {"at": 1e999}}</tool_call>',
    '<tool_call>{"name": "look", "arguments": {"at": "\\ud83d"}}</tool_call>',
    '<tool_call>{"name": "\\ud83d", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "look", "arguments": {"\\udc00": -Infinity}}</tool_call>',
    '<tool_call>{"name": "", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "look", "arguments": []}</tool_call>',
    '<tool_call>{"name": "look"}</tool_call>',
)  # fmt: skip
USAGE = {"stream_options": {"include_usage": True}}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def body_of(path: str, **fields: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": "Hi"}]
    common = {"model": "memory", "stream": True} | fields
    if path == "/v1/completions":
        return common | {"prompt": "Hi"}
    if path == "/v1/responses":
        return common | {"input": said}
    return common | {"messages": said} | ({"max_tokens": 50} if "messages" in path else {})


def script(chance: Random) -> tuple[Event, ...]:
    """An answer in pieces, each cut anywhere, and some end of it."""
    text = "".join(chance.choices(PARTS, k=chance.randrange(12)))
    cuts = sorted(chance.choices(range(len(text) + 1), k=chance.randrange(6)))
    pieces = [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]
    return (*(Delta(piece, 1) for piece in pieces), chance.choice(ENDS))


ENDS: tuple[Event, ...] = (
    Ended(Finish.STOP, 7, 5, 9),
    Ended(Finish.STOP, 7, 5, 9, stop="###"),
    Ended(Finish.LENGTH, 7, 5, 9),
    Ended(Finish.FAILED, 7, 5, 9, problem="not a number"),
    Ended(Finish.CANCELLED, 7, 5, 9),
    TurnCancelled(),
    Unavailable("swapping"),
    ZeroDivisionError("ours"),
)
BROKEN = set(ENDS[3:])


@pytest.mark.parametrize("path", CHECKS)
async def test_events_are_in_order_whatever_a_turn_says_and_however_it_ends(path: str) -> None:
    chance, seen = Random(path), Said()
    service = ScriptedService()
    app = create_app(Edge(service, 100_000))
    with capture_logs():  # of errors that are our own; they are slow to write
        async with client_of(app) as client:
            await _many(service, client, path, chance, seen)
    assert seen.text
    assert path == "/v1/completions" or (seen.thought and seen.calls)


async def _many(
    service: ScriptedService, client: httpx.AsyncClient, path: str, chance: Random, seen: Said
) -> None:
    for _ in range(SCRIPTED):
        service.script = script(chance)
        service.reading = evolve(
            READING, single=chance.random() < 0.3, opened=chance.random() < 0.3
        )
        fields, options = ways(path, chance)
        said = await told(client, path, body_of(path, **fields) | {"model": "tiny"}, options)
        assert (said.end == "error") == (service.script[-1] in BROKEN), service.script
        _gather(seen, said)


def ways(path: str, chance: Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """How the stream is asked for, and what the check has to know of that."""
    one = chance.random() < 0.5
    if path == "/v1/messages":
        return {"thinking": {"type": "adaptive" if one else "disabled"}}, {"thoughts": one}
    return (USAGE, {"usage": True}) if one and "completions" in path else ({}, {})


async def told(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], options: dict[str, Any]
) -> Said:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    try:
        return CHECKS[path](response.text, **options)
    except Exception as error:
        error.add_note(response.text)
        raise


def _gather(seen: Said, said: Said) -> None:
    seen.text, seen.thought = seen.text or said.text, seen.thought or said.thought
    seen.calls = seen.calls or said.calls


def asked_for(path: str) -> Iterator[dict[str, Any]]:
    """What a dialect can ask of the fake engine: anything, calls, JSON."""
    yield {}
    if path == "/v1/chat/completions":
        yield {"tools": [TOOL], "tool_choice": "required", "max_tokens": 60}
        form = {"name": "x", "schema": SCHEMA}
        yield {"response_format": {"type": "json_schema", "json_schema": form}}
    elif path == "/v1/responses":
        tools = [{"type": "function"} | FUNCTION]
        yield {"tools": tools, "tool_choice": "required", "max_output_tokens": 60}
        yield {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}}
    elif path == "/v1/messages":
        tools = [{"name": "look", "description": "Look.", "input_schema": SCHEMA}]
        yield {"tools": tools, "tool_choice": {"type": "any"}, "max_tokens": 60}
        yield {"thinking": {"type": "adaptive"}}


@pytest.mark.parametrize("path", CHECKS)
async def test_events_are_in_order_whatever_an_engine_samples(path: str) -> None:
    kinds = list(asked_for(path))
    seen: list[Said] = []
    with whole_service(end_rate=0.1) as whole:
        async with client_of(create_app(Edge(whole.service, 100_000))) as client:
            for number in range(GENERATED * len(kinds)):
                fields = kinds[number % len(kinds)]
                body = body_of(path, **fields) | await varied(path, number)
                seen.append(await told(client, path, body, {}))
    assert len({said.text for said in seen}) > GENERATED / 2
    assert len({said.end for said in seen}) > 1
    assert path == "/v1/completions" or any(said.calls for said in seen)


async def varied(path: str, number: int) -> dict[str, Any]:
    """Another prompt, and so another answer."""
    text = f"Tell me number {number}."
    if path == "/v1/completions":
        return {"prompt": text}
    name = "input" if path == "/v1/responses" else "messages"
    return {name: [{"role": "user", "content": text}]}


@pytest.mark.parametrize(
    ("path", "broken"),
    [
        ("/v1/chat/completions", 'data: {"choices": [{"delta": {"content": "no role"}}]}\n\n'),
        ("/v1/completions", "data: [DONE]\n\n"),
        ("/v1/messages", 'event: message_stop\ndata: {"type": "message_stop"}\n\n'),
        ("/v1/responses", 'event: x\ndata: {"type": "y", "sequence_number": 0}\n\n'),
    ],
)
def test_the_checks_notice_what_is_out_of_order(path: str, broken: str) -> None:
    with pytest.raises((AssertionError, LookupError)):
        CHECKS[path](broken)


@pytest.mark.parametrize("path", CHECKS)
async def test_the_checks_notice_an_event_that_is_missing_or_comes_twice(path: str) -> None:
    call = '<think>hm</think>so<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    service = ScriptedService((Delta(call, 1), Ended(Finish.STOP, 7, 5, 9)), reading=READING)
    async with client_of(create_app(Edge(service, 100_000))) as client:
        fields = {"thinking": {"type": "adaptive"}} if path == "/v1/messages" else {}
        body = body_of(path, **fields) | {"model": "tiny"}
        text = (await client.post(path, json=body)).text
    expected, events = CHECKS[path](text), text.split("\n\n")[:-1]
    unnoticed = [
        event
        for at, event in enumerate(events)
        for other in (events[:at] + events[at + 1 :], events[: at + 1] + events[at:])
        if _passes(path, "".join(f"{one}\n\n" for one in other), expected)
    ]
    assert all('"ping"' in event for event in unnoticed), unnoticed


def _passes(path: str, text: str, expected: Said) -> bool:
    try:
        said = CHECKS[path](text)
    except (AssertionError, LookupError, StopIteration, ValueError, TypeError):
        return False
    return json.dumps(vars_of(said)) == json.dumps(vars_of(expected))


def vars_of(said: Said) -> list[Any]:
    return [said.text, said.thought, said.calls, said.end]
