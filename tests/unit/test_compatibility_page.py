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
