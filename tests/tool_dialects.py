"""Turns with a tool call, in each dialect, as agent programs make them with its own package."""

import json
from collections.abc import Callable
from typing import Any

import anthropic
import openai
from attrs import frozen

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"at": {"type": "string", "maxLength": 8}},
    "required": ["at"],
    "additionalProperties": False,
}
LOOK: dict[str, Any] = {"name": "look", "description": "Look at a place.", "parameters": SCHEMA}
SYSTEM = "You look at things, one after another. " * 10
MOST = 400  # tokens of an answer: a call, however it is spelled, has fewer


@frozen(eq=False)
class Clients:
    """Of one server: whom to ask for `model`; with `named`, as the agent of the dialect's name."""

    openai: openai.OpenAI
    anthropic: anthropic.Anthropic
    model: str
    named: bool = False

    def headers(self, name: str) -> dict[str, str]:
        """Who asks."""
        return {"X-Agent-ID": name} if self.named else {}


@frozen
class Turn:
    """What to send next, and the tokens of a turn: the prompt's, those cached, and those said."""

    sent: list[Any]
    prompt: int
    cached: int
    said: int


Dialect = Callable[[Clients, list[Any]], Turn]


def chat(to: Clients, sent: list[Any]) -> Turn:
    """OpenAI's chat completions."""
    answer: Any = to.openai.chat.completions.create(
        model=to.model,
        messages=[{"role": "system", "content": SYSTEM}, *sent],
        tools=[{"type": "function", "function": LOOK}],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=MOST,
        extra_headers=to.headers("chat"),
    )
    said, usage = answer.choices[0].message, answer.usage
    assert answer.choices[0].finish_reason == "tool_calls"
    [call] = said.tool_calls
    again = {"name": call.function.name, "arguments": spread(call.function.arguments)}
    echo = {
        "role": "assistant",
        "tool_calls": [{"id": call.id, "type": "function", "function": again}],
    }
    result = {"role": "tool", "tool_call_id": call.id, "content": _seen(sent)}
    cached = usage.prompt_tokens_details.cached_tokens or 0
    return Turn([*sent, echo, result], usage.prompt_tokens, cached, usage.completion_tokens)


def responses(to: Clients, sent: list[Any]) -> Turn:
    """OpenAI's responses."""
    answer: Any = to.openai.responses.create(
        model=to.model,
        instructions=SYSTEM,
        input=sent,
        tools=[{"type": "function", "strict": True, **LOOK}],
        tool_choice="required",
        parallel_tool_calls=False,
        max_output_tokens=MOST,
        extra_headers=to.headers("responses"),
    )
    [call], usage = answer.output, answer.usage
    echo = {
        "type": "function_call",
        "call_id": call.call_id,
        "name": call.name,
        "arguments": spread(call.arguments),
    }
    result = {"type": "function_call_output", "call_id": call.call_id, "output": _seen(sent)}
    cached = usage.input_tokens_details.cached_tokens
    return Turn([*sent, echo, result], usage.input_tokens, cached, usage.output_tokens)


def messages(to: Clients, sent: list[Any]) -> Turn:
    """Anthropic's messages."""
    answer: Any = to.anthropic.messages.create(
        model=to.model,
        system=SYSTEM,
        messages=sent,
        tools=[{"name": "look", "description": LOOK["description"], "input_schema": SCHEMA}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        max_tokens=MOST,
        extra_headers=to.headers("messages"),
    )
    assert answer.stop_reason == "tool_use"
    [call], usage = answer.content, answer.usage
    echo = {"role": "assistant", "content": [call.model_dump(exclude_none=True)]}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": _seen(sent)}
    cached = usage.cache_read_input_tokens or 0
    more = [*sent, echo, {"role": "user", "content": [result]}]
    return Turn(more, usage.input_tokens + cached, cached, usage.output_tokens)


DIALECTS: tuple[Dialect, ...] = (chat, responses, messages)


def spread(arguments: str) -> str:
    """The arguments as a client writes them that has parsed them."""
    return json.dumps(json.loads(arguments), indent=1)


def _seen(sent: list[Any]) -> str:
    """What a call finds: something else every time."""
    return f"ship {len(sent)}"
