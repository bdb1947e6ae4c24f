"""What clients are told when another model takes the place of the one that answers them."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from agentcache.domain.errors import Unavailable
from agentcache.domain.events import Delta
from tests.scripted_service import ScriptedService, app_of, client_of

pytestmark = pytest.mark.anyio
SAID = [{"role": "user", "content": "Hi"}]
ASKS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": SAID},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/messages": {"messages": SAID, "max_tokens": 50},
    "/v1/responses": {"input": SAID},
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def cut_off(path: str, stream: bool) -> AsyncIterator[httpx.Response]:
    """The response to a turn that another model interrupts after its first words."""
    swapping = Unavailable("swapping", 2.5)
    service = ScriptedService(script=(Delta("so", 1), swapping))
    async with client_of(app_of(service)) as client:
        body = ASKS[path] | {"model": "tiny", "stream": stream}
        yield await client.post(path, json=body)


@pytest.mark.parametrize("path", ASKS)
async def test_the_last_event_of_a_stream_says_why_it_was_cut_off_and_when_to_ask_again(
    path: str,
) -> None:
    async with cut_off(path, stream=True) as response:
        frames = [line for line in response.text.splitlines() if line.startswith("data: {")]
        last = json.dumps(json.loads(frames[-1].removeprefix("data: ")))
        assert response.status_code == 200
        assert "the server is swapping; retry in 2 s" in last
        assert "cancelled" not in last


@pytest.mark.parametrize("path", ASKS)
async def test_an_answer_that_is_not_streamed_becomes_a_503_that_says_when_to_ask_again(
    path: str,
) -> None:
    async with cut_off(path, stream=False) as response:
        assert (response.status_code, response.headers["retry-after"]) == (503, "3")
        assert response.headers["retry-after-ms"] == "2500"
        assert "the server is swapping" in response.text
