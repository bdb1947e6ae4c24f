"""The page on compatibility tells of every parameter, and what it says of each is so."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from anthropic.types.message_create_params import MessageCreateParamsBase
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from starlette.datastructures import Headers

from agentcache.adapters.http import anthropic_ask, completion_ask, openai_ask, responses_ask
from agentcache.adapters.http.anthropic_types import MessagesRequest
from agentcache.adapters.http.completion_types import CompletionRequest
from agentcache.adapters.http.openai_types import ChatRequest
from agentcache.adapters.http.responses_types import ResponsesRequest
from agentcache.domain.errors import InvalidRequest
from agentcache.service import Ask

PAGE = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text("utf-8")
ROW = re.compile(r"^\| `(\w+)` \| (honoured|refused|ignored) \| .*\|$", re.M)
NONE = Headers()
TYPES: dict[str, tuple[Any, Any]] = {
    "/v1/chat/completions": (ChatParams, ChatRequest),
    "/v1/completions": (CompletionCreateParamsBase, CompletionRequest),
    "/v1/responses": (ResponseCreateParamsBase, ResponsesRequest),
    "/v1/messages": (MessageCreateParamsBase, MessagesRequest),
}
ASKED: dict[str, Callable[[Any], Ask]] = {
    "/v1/chat/completions": lambda body: openai_ask.asked(body, NONE),
    "/v1/completions": lambda body: completion_ask.asked(body, NONE),
    "/v1/responses": lambda body: responses_ask.asked(body, (), NONE),
    "/v1/messages": lambda body: anthropic_ask.asked(body, NONE),
}
_SAID = [{"role": "user", "content": "Hi"}]
LEAST: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": _SAID},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": _SAID, "max_tokens": 5},
}
VALUES: dict[str, Any] = {  # that mean something; all others take text
    "n": 2,
    "best_of": 2,
    "max_tool_calls": 3,
    "background": True,
    "truncation": "auto",
    "modalities": ["text", "audio"],
    "functions": [{"name": "f"}],
    "verbosity": "high",
    **{key: {"id": "x"} for key in ["audio", "moderation", "web_search_options", "prompt"]},
    **{key: {"type": "x"} for key in ["prediction", "prompt_cache_options", "metadata"]},
    **{key: {"type": "x"} for key in ["cache_control", "stream_options", "image"]},
    "context_management": [{"type": "compaction"}],
    "background_options": {"x": 1},
}

TOLD = {  # what changes how an answer is told, not what is asked of the service; tested by dialect
    *("stream", "stream_options", "echo", "diagnostics", "metadata", "include"),
}
_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
_FUNCTION = {"name": "f", "description": "Does.", "parameters": _SCHEMA}
_TOOLS: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [{"type": "function", "function": _FUNCTION}],
    "/v1/responses": [{"type": "function", **_FUNCTION}],
    "/v1/messages": [{"name": "f", "input_schema": _SCHEMA}],
}
_FORM = {"type": "json_schema", "schema": _SCHEMA}
ASKS_FOR: dict[str, Any] = {  # other than what is done anyway
    **dict.fromkeys(["max_tokens", "max_completion_tokens", "max_output_tokens", "top_k"], 7),
    **dict.fromkeys(["temperature", "top_p", "min_p"], 0.3),
    **dict.fromkeys(["presence_penalty", "frequency_penalty"], 0.5),
    **{name: ["Hello"] for name in ["stop", "stop_sequences"]},
    "model": "other",
    "messages": [{"role": "user", "content": "Other"}],
    "prompt": "Other",
    "input": "Other",
    "instructions": "Be brief.",
    "system": "Be brief.",
    "seed": 3,
    "logit_bias": {"5": 2},
    "logprobs": True,
    "top_logprobs": 2,
    "parallel_tool_calls": False,
    "store": False,
    "prompt_cache_key": "thread",
    "reasoning_effort": "low",
    "reasoning": {"effort": "low"},
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA}},
    "text": {"format": {"name": "x", **_FORM}},
    "output_config": {"format": _FORM},
    "thinking": {"type": "disabled"},
    "metadata": {"user_id": "ann"},
    "previous_response_id": None,  # a conversation of the service: test_openai_responses
}
BESIDE = {"top_logprobs": {"logprobs": True}}  # what it takes for it to mean something
CHOICES = {
    "/v1/chat/completions": [
        *("none", "required"),
        {"type": "function", "function": {"name": "f"}},
    ],
    "/v1/responses": ["none", "required", {"type": "function", "name": "f"}],
    "/v1/messages": [{"type": one} for one in ("none", "any")] + [{"type": "tool", "name": "f"}],
}


def section(path: str) -> str:
    return PAGE.split(f"## `{path}`\n", 1)[1].split("\n## ", 1)[0]


def rows(path: str) -> dict[str, str]:
    found = ROW.findall(section(path))
    assert len(dict(found)) == len(found)
    return dict(found)


def told(verdict: str) -> list[tuple[str, str]]:
    return [(path, name) for path in TYPES for name, said in rows(path).items() if said == verdict]


def ask(path: str, **fields: Any) -> Ask:
    body = msgspec.json.encode({"model": "m", **LEAST[path], **fields})
    return ASKED[path](msgspec.json.decode(body, type=TYPES[path][1]))


@pytest.mark.parametrize("path", TYPES)
def test_every_parameter_of_the_package_and_of_the_server_is_told_of(path: str) -> None:
    params, request = TYPES[path]
    names = {name for kind in params.__mro__ for name in getattr(kind, "__annotations__", {})}
    taken = {one.encode_name for one in msgspec.structs.fields(request)}
    assert set(rows(path)) == names | taken
    assert {name for name, said in rows(path).items() if said != "ignored"} <= taken


@pytest.mark.parametrize(("path", "name"), told("refused"))
def test_what_is_said_to_be_refused_is_refused_by_its_name(path: str, name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ask(path, **{name: VALUES.get(name, "x")})
    assert refused.value.param == name


def _asking(path: str, name: str) -> bool:
    if name in TOLD and (path, name) != ("/v1/messages", "metadata"):
        return False
    return name not in ("tool_choice", "previous_response_id")


@pytest.mark.parametrize(("path", "name"), [one for one in told("honoured") if _asking(*one)])
def test_what_is_said_to_be_honoured_changes_what_is_asked_for(path: str, name: str) -> None:
    value = _TOOLS[path] if name == "tools" else ASKS_FOR[name]
    if path == "/v1/completions" and name == "logprobs":
        value = 2
    beside = BESIDE.get(name, {}) if path == "/v1/chat/completions" else {}
    assert ask(path, **beside, **{name: value}) != ask(path, **beside)


@pytest.mark.parametrize(
    ("path", "choice"), [(path, one) for path in CHOICES for one in CHOICES[path]]
)
def test_each_choice_of_tools_asks_for_something_of_its_own(path: str, choice: Any) -> None:
    tools = _TOOLS[path]
    others = [one for one in CHOICES[path] if one != choice]
    chosen = ask(path, tools=tools, tool_choice=choice)
    assert chosen != ask(path, tools=tools)
    assert all(chosen != ask(path, tools=tools, tool_choice=other) for other in others)


@pytest.mark.parametrize(("path", "name"), told("ignored"))
def test_what_is_said_to_be_ignored_changes_nothing(path: str, name: str) -> None:
    assert ask(path, **{name: VALUES.get(name, "x")}) == ask(path)


def test_nothing_else_is_refused_for_its_name() -> None:
    refused = {(path, name) for path, name in told("refused")}
    known = {
        "/v1/chat/completions": openai_ask.NEUTRAL,
        "/v1/completions": completion_ask.NEUTRAL,
        "/v1/responses": responses_ask.NEUTRAL,
    }
    assert refused == {(path, name) for path, names in known.items() for name in names}


@pytest.mark.parametrize("path", TYPES)
def test_null_asks_for_nothing(path: str) -> None:
    asked = ask(path, **{name: None for name in rows(path) if name not in ("model", *LEAST[path])})
    assert asked == ask(path)
