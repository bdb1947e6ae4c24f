"""The default model kept to tools and schemas at temperature 1: valid, unless cut by length."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from agentcache.ports.model_source import ModelFolder
from tests.servers import Server, served

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL: Any = {
    "type": "function",
    "function": {"name": "forecast", "description": "The weather.", "parameters": SCHEMA},
}
ASKED: list[Any] = [{"role": "user", "content": "Will it rain in Rome in the next two days?"}]


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, default_model: ModelFolder
) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("default") / "home", Path(default_model.path)) as server:
        yield server


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=180)


def test_required_calls_can_be_made_and_their_results_are_taken(server: Server) -> None:
    with client_of(server) as client:
        asked: Any = {
            "model": client.models.list().data[0].id,
            "tools": [TOOL],
            "tool_choice": "required",
            "parallel_tool_calls": False,
            "temperature": 1,
            "max_tokens": 48,
        }
        make = client.chat.completions.create
        for first in whole(2, lambda seed: make(**asked, messages=ASKED, seed=seed)):
            choice = first.choices[0]
            assert choice.finish_reason == "tool_calls"
            call = choice.message.tool_calls[0]
            check(json.loads(call.function.arguments))
            result = {"role": "tool", "tool_call_id": call.id, "content": "No rain."}
            said = choice.message.model_dump(exclude_none=True)
            free = asked | {"tool_choice": "auto", "max_tokens": 4}
            after: Any = make(**free, messages=[*ASKED, said, result])
            details = after.usage.prompt_tokens_details
            assert details.cached_tokens >= 0.97 * first.usage.total_tokens


def test_answers_fit_their_schema(server: Server) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA}}
    with client_of(server) as client:
        asked: Any = {
            "model": client.models.list().data[0].id,
            "messages": ASKED,
            "response_format": form,
            "temperature": 1,
            "max_tokens": 48,
        }
        make = client.chat.completions.create
        for answer in whole(3, lambda seed: make(**asked, seed=seed)):
            check(json.loads(answer.choices[0].message.content))


def whole(count: int, ask: Callable[[int], Any]) -> Iterator[Any]:
    """So many answers that are not cut off: at temperature 1 any may be."""
    answers = (ask(seed) for seed in range(20 * count))
    for _ in range(count):
        yield next(one for one in answers if one.choices[0].finish_reason != "length")


def check(found: Any) -> None:
    assert set(found) == {"city", "days"}
    assert isinstance(found["city"], str)
    assert isinstance(found["days"], int)
