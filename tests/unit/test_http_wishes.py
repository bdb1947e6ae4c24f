"""How a turn shall be treated, in headers; and bodies that take their time."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import unquote

import httpx
import pytest
from attrs import evolve

from agentcache.adapters.http import body
from agentcache.adapters.http.app import create_app
from agentcache.adapters.http.edge import Edge
from agentcache.domain.errors import Overloaded, Unavailable
from tests.scripted_service import ASKED, WARM, Call, ScriptedService, app_of, client_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def asked(service: ScriptedService, **headers: str) -> httpx.Response:
    named = {f"x-agent-{name}": value for name, value in headers.items()}
    async with client_of(app_of(service)) as client:
        return await client.post("/v1/chat/completions", json=ASKED, headers=named)


async def test_a_turn_may_fork_be_urgent_and_wait_no_longer_than_it_says() -> None:
    service = ScriptedService()
    await asked(service, busy="Fork", priority="-7", timeout="2.5")
    (ask,) = service.asks
    assert (ask.when_busy, ask.priority, ask.timeout) == ("fork", -7, 2.5)


async def test_without_wishes_a_turn_waits_like_any() -> None:
    service = ScriptedService()
    await asked(service)
    (ask,) = service.asks
    assert (ask.when_busy, ask.priority, ask.timeout) == ("wait", 0, None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("busy", value) for value in ("", "maybe", "fork, wait")),
        *(("priority", value) for value in ("", "11", "-11", "1.5", "high", "nan", "1e400")),
        *(("timeout", value) for value in ("", "-1", "soon", "nan", "inf")),
    ],
)
async def test_a_wish_that_makes_no_sense_is_refused_by_name(name: str, value: str) -> None:
    service = ScriptedService()
    response = await asked(service, **{name: value})
    assert (response.status_code, response.json()["error"]["param"]) == (400, f"x-agent-{name}")
    assert not service.asks


@pytest.mark.parametrize("name", ["ann", "ann~1234abcd", "änn 🐈", "100%", "a\r\nset-cookie: b"])
async def test_an_answer_says_which_agent_it_is_of(name: str) -> None:
    response = await asked(ScriptedService(admitted=evolve(WARM, agent=name)))
    assert unquote(response.headers["x-agentcache-agent"]) == name
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (Overloaded("64 turns are waiting already", 2.5), 429),
        (Unavailable("swapping", 2.5), 503),
        (Unavailable("starting", 2.5), 503),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_whoever_is_refused_for_now_is_told_when_to_try_again_before_any_stream(
    refusal: Exception, status: int, stream: bool
) -> None:
    async with client_of(app_of(ScriptedService(refusal=refusal))) as client:
        response = await client.post("/v1/chat/completions", json=ASKED | {"stream": stream})
    assert response.status_code == status
    assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("3", "2500")
    assert response.headers["content-type"] == "application/json"


async def test_a_body_that_arrives_too_slowly_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    never = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b'{"model": '
        await never.wait()

    monkeypatch.setattr(body, "PATIENCE", 0.01)
    service = ScriptedService()
    async with client_of(app_of(service)) as client:
        response = await client.post("/v1/chat/completions", content=slow())
    assert response.status_code == 408
    assert "too slowly" in response.json()["error"]["message"]
    assert not service.asks


async def test_a_body_may_take_longer_the_more_of_it_arrives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(body, "PATIENCE", 0.5)
    monkeypatch.setattr(body, "LEAST_RATE", 0.1)  # ten seconds more for each byte

    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"model": "tiny", '
        await asyncio.sleep(0.7)  # longer than the patience
        yield b'"messages": [{"role": "user", "content": "Hi"}]}'

    async with client_of(app_of(ScriptedService())) as client:
        response = await client.post("/v1/chat/completions", content=pieces())
    assert response.status_code == 200


async def test_whoever_waits_for_a_place_when_draining_begins_is_sent_away_at_once() -> None:
    service = ScriptedService()
    service.doors.clear()
    edge = Edge(service, 1000)
    call = Call(create_app(edge))
    running = asyncio.create_task(call.run())
    await service.waiting.wait()
    await edge.drain(patience=60)
    await running
    assert service.gave_up.is_set()
    start = call.sent.get_nowait()
    assert start["status"] == 503
    assert (b"retry-after", b"1") in start["headers"]
