"""Ten turns with a tool call each, in each dialect, over a home that is closed and opened between.

Nobody has a name: the conversations are recognised by what was said.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from attrs import frozen
from starlette.testclient import TestClient

from tests.integration.test_mounted import mounted

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"at": {"type": "string", "maxLength": 8}},
    "required": ["at"],
    "additionalProperties": False,
}
LOOK: dict[str, Any] = {"name": "look", "description": "Look at a place.", "parameters": SCHEMA}
SYSTEM = "You look at things, one after another. " * 10
TURNS = 10


@frozen
class Turn:
    """What to send next, and the tokens of a turn: the prompt's, those cached, and those said."""

    sent: list[Any]
    prompt: int
    cached: int
    said: int


Dialect = Callable[[TestClient, list[Any], int], Turn]


def chat(http: TestClient, sent: list[Any], number: int) -> Turn:
    client = openai.OpenAI(base_url=f"{http.base_url}/llm/v1", api_key="none", http_client=http)
    answer: Any = client.chat.completions.create(
        model="memory",
        messages=[{"role": "system", "content": SYSTEM}, *sent],
        tools=[{"type": "function", "function": LOOK}],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=400,
        seed=number,
    )
    said, usage = answer.choices[0].message, answer.usage
    [call] = said.tool_calls
    again = {"name": call.function.name, "arguments": spread(call.function.arguments)}
    echo = {
        "role": "assistant",
        "tool_calls": [{"id": call.id, "type": "function", "function": again}],
    }
    result = {"role": "tool", "tool_call_id": call.id, "content": str(number)}
    cached = usage.prompt_tokens_details.cached_tokens
    return Turn([*sent, echo, result], usage.prompt_tokens, cached, usage.completion_tokens)


def responses(http: TestClient, sent: list[Any], number: int) -> Turn:
    client = openai.OpenAI(base_url=f"{http.base_url}/llm/v1", api_key="none", http_client=http)
    answer: Any = client.responses.create(
        model="memory",
        instructions=SYSTEM,
        input=sent,
        tools=[{"type": "function", "strict": True, **LOOK}],
        tool_choice="required",
        parallel_tool_calls=False,
        max_output_tokens=400,
    )
    [call], usage = answer.output, answer.usage
    echo = {
        "type": "function_call",
        "call_id": call.call_id,
        "name": call.name,
        "arguments": spread(call.arguments),
    }
    result = {"type": "function_call_output", "call_id": call.call_id, "output": str(number)}
    cached = usage.input_tokens_details.cached_tokens
    return Turn([*sent, echo, result], usage.input_tokens, cached, usage.output_tokens)


def messages(http: TestClient, sent: list[Any], number: int) -> Turn:
    client = anthropic.Anthropic(base_url=f"{http.base_url}/llm", api_key="none", http_client=http)
    answer: Any = client.messages.create(
        model="memory",
        system=SYSTEM,
        messages=sent,
        tools=[{"name": "look", "description": LOOK["description"], "input_schema": SCHEMA}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        max_tokens=400,
    )
    [call], usage = answer.content, answer.usage
    echo = {"role": "assistant", "content": [call.model_dump(exclude_none=True)]}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": str(number)}
    cached = usage.cache_read_input_tokens
    more = [*sent, echo, {"role": "user", "content": [result]}]
    return Turn(more, usage.input_tokens + cached, cached, usage.output_tokens)


def spread(arguments: str) -> str:
    """The arguments as a client writes them that has parsed them."""
    return json.dumps(json.loads(arguments), indent=1)


@pytest.mark.parametrize("dialect", [chat, responses, messages])
def test_ten_turns_go_on_from_what_was_sampled_whenever_the_home_is_opened_anew(
    tmp_path: Path, dialect: Dialect
) -> None:
    sent: list[Any] = [{"role": "user", "content": "Look here."}]
    known = served = before = 0
    for lives in (range(5), range(5, 6), range(6, TURNS)):
        with mounted(tmp_path) as client:
            for number in lives:
                turn = dialect(client, sent, number)
                known, served = known + before, served + min(before, turn.cached)
                sent, before = turn.sent, turn.prompt + turn.said
    assert served >= 0.97 * known > 0
