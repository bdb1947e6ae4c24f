"""Requests in the shapes of agent programs: what they change each time costs no second prefill."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from agentcache.adapters.http.app import create_app
from agentcache.adapters.http.edge import Edge
from tests.whole_service import whole_service

pytestmark = pytest.mark.anyio
RULES = "You help with the code in this folder. " * 30
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"path": {"type": "string"}}}
Shape = Callable[[int, list[Any]], tuple[str, dict[str, str], dict[str, Any]]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def claude_code(turn: int, said: list[Any]) -> tuple[str, dict[str, str], dict[str, Any]]:
    """A billing line whose hash differs each time; the session in a header."""
    billing = f"x-anthropic-billing-header: cc_version=2.1.177.01c; cch=3{turn}ee5;"
    system = [
        {"type": "text", "text": billing},
        {"type": "text", "text": RULES, "cache_control": {"type": "ephemeral"}},
    ]
    tools = [{"name": "Read", "description": "Reads.", "input_schema": SCHEMA}]
    body = {"system": system, "messages": said, "tools": tools, "max_tokens": 20}
    headers = {"anthropic-version": "2023-06-01", "X-Claude-Code-Session-Id": "s"}
    return "/v1/messages", headers, body


def codex(turn: int, said: list[Any]) -> tuple[str, dict[str, str], dict[str, Any]]:
    """The whole history each time, tools that cannot be run here, the thread's id as cache key."""
    tools = [
        {"type": "function", "name": "shell", "strict": False, "parameters": SCHEMA},
        {"type": "web_search"},
    ]
    body = {"instructions": f"Current time: 2026-06-16T19:4{turn}:07\n{RULES}", "input": said}
    more = {"tools": tools, "store": False, "prompt_cache_key": "thread", "max_output_tokens": 20}
    return "/v1/responses", {"session-id": "thread"}, body | more


def opencode(turn: int, said: list[Any]) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Chat completions with its session as a header, and the time of day."""
    system = f"Current time: 2026-06-16 19:4{turn}:07\n{RULES}"
    messages = [{"role": "system", "content": system}, *said]
    return (
        "/v1/chat/completions",
        {"x-session-affinity": "s"},
        {"messages": messages, "max_tokens": 20},
    )


@pytest.mark.parametrize("shape", [claude_code, codex, opencode])
async def test_a_second_turn_is_served_from_the_cache(shape: Shape) -> None:
    first: list[Any] = [{"role": "user", "content": "Hello."}]
    more = [*first, {"role": "user", "content": "And now?"}]
    with whole_service() as whole:
        transport = httpx.ASGITransport(create_app(Edge(whole.service, 1_000_000)))
        async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
            for turn, said in enumerate((first, more)):
                path, headers, body = shape(turn, said)
                answer = await client.post(path, json=body | {"model": "memory"}, headers=headers)
                assert answer.status_code == 200, answer.text
    assert int(answer.headers["x-agentcache-cached-tokens"]) > len(RULES) / 2


async def test_text_that_changes_and_that_no_rule_knows_is_told_of() -> None:
    with whole_service() as whole:
        transport = httpx.ASGITransport(create_app(Edge(whole.service, 1_000_000)))
        async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
            said: list[Any] = [{"role": "user", "content": "Hello."}]
            for turn in range(2):
                system = {"role": "system", "content": f"Build {turn}7731 of today.\n{RULES}"}
                body = {"model": "memory", "messages": [system, *said], "max_tokens": 20}
                answer = await client.post(
                    "/v1/chat/completions", json=body, headers={"x-session-affinity": "s"}
                )
                reply = answer.raise_for_status().json()["choices"][0]["message"]["content"]
                said = [*said, {"role": "assistant", "content": reply}, *said]
    assert answer.headers["x-agentcache-miss"] == "system_changed"
    assert int(answer.headers["x-agentcache-cached-tokens"]) < len(RULES) / 2
