"""What each dialect is told while the server goes away, or another model takes its place."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from agentcache.adapters.http.app import create_app
from agentcache.adapters.http.edge import Edge
from agentcache.domain.errors import Unavailable
from agentcache.domain.events import Delta
from tests.scripted_service import ScriptedService, client_of
from tests.unit.test_http_swap import ASKS

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def check_shape(path: str, error: dict[str, Any]) -> None:
    """`error` is the body of an error as the dialect has it."""
    assert error["error"]["type"] == "overloaded_error"
    assert error.get("type") == ("error" if path == "/v1/messages" else None)
    assert path == "/v1/messages" or error["error"]["code"] == "unavailable"


@pytest.mark.parametrize("path", ASKS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reason", ["draining", "swapping"])
async def test_a_turn_that_comes_too_late_is_refused_with_a_time_to_come_back(
    path: str, stream: bool, reason: str
) -> None:
    service = ScriptedService(refusal=Unavailable("swapping", 1.5))
    edge = Edge(service, 10_000)
    edge.draining = reason == "draining"
    async with client_of(create_app(edge)) as client:
        answer = await client.post(path, json=ASKS[path] | {"model": "tiny", "stream": stream})
    after = {"draining": ("1", "1000"), "swapping": ("2", "1500")}[reason]
    assert answer.status_code == 503
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == after
    assert answer.headers["content-type"] == "application/json"
    assert f"the server is {reason}" in answer.text
    check_shape(path, answer.json())


async def cut_by_draining(path: str, stream: bool) -> httpx.Response:
    """The answer to a turn that still runs when the time that draining has is over."""
    service = ScriptedService(script=(Delta("so", 1),))
    edge = Edge(service, 10_000)
    async with client_of(create_app(edge)) as client:
        body = ASKS[path] | {"model": "tiny", "stream": stream}
        running = asyncio.create_task(client.post(path, json=body))
        await service.turns.get()
        await edge.drain(patience=0)
        return await running


@pytest.mark.parametrize("path", ASKS)
async def test_a_stream_that_draining_cuts_ends_with_the_error_of_its_dialect(path: str) -> None:
    answer = await cut_by_draining(path, stream=True)
    *said, last = [one for one in answer.text.split("\n\n") if one]
    lines = dict(line.split(": ", 1) for line in last.split("\n"))
    told = json.loads(lines["data"])
    assert answer.status_code == 200
    assert any("so" in one for one in said)
    if path == "/v1/responses":
        assert (lines["event"], told["type"], told["code"]) == ("error", "error", "unavailable")
        assert "the server is draining" in told["message"]
    else:
        assert lines.get("event") == ("error" if path == "/v1/messages" else None)
        assert "the server is draining" in told["error"]["message"]
        check_shape(path, told)


@pytest.mark.parametrize("path", ASKS)
async def test_an_answer_that_draining_cuts_is_a_503_of_its_dialect(path: str) -> None:
    answer = await cut_by_draining(path, stream=False)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "the server is draining" in answer.text
    check_shape(path, answer.json())
