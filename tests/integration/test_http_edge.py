"""The edge as the openai SDK sees it, over a real socket."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import openai
import pytest
from openai import AsyncOpenAI
from structlog.testing import capture_logs

from agentcache.adapters.http.app import create_app
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.server import CannotListen, HttpServer, listen, url_of
from agentcache.domain.errors import (
    Overloaded,
    PromptTooLong,
    TurnFailed,
    Unavailable,
)
from agentcache.domain.events import Delta, Ended
from agentcache.domain.request import Finish
from tests.scripted_service import ASKED, HELLO, ScriptedService

pytestmark = pytest.mark.anyio
MAX_BODY = 50_000


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def serving(service: ScriptedService) -> AsyncIterator[tuple[HttpServer, str]]:
    """A server on a free port, and its address."""
    edge = Edge(service, MAX_BODY)
    server = HttpServer(create_app(edge), edge, listen("127.0.0.1", 0), patience=60)
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(server.run(address.set_result))
    try:
        yield server, await address
    finally:
        server.stop()
        await running


@asynccontextmanager
async def sdk(service: ScriptedService) -> AsyncIterator[AsyncOpenAI]:
    async with serving(service) as (_, url):
        client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        async with client:
            yield client


async def test_the_sdk_reads_a_whole_answer() -> None:
    async with sdk(ScriptedService()) as client:
        answer = await client.chat.completions.create(**ASKED)
    assert answer.choices[0].message.content == "Hello"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 5
    assert answer._request_id
    assert answer._request_id.startswith("req_")


async def test_the_sdk_reads_a_stream_with_its_usage() -> None:
    async with sdk(ScriptedService()) as client:
        stream = await client.chat.completions.create(
            **ASKED, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Hello"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 11


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_was_heard_out_is_logged_as_such(stream: bool) -> None:
    with capture_logs() as lines:
        async with sdk(ScriptedService()) as client:
            answer = await client.chat.completions.create(**ASKED, stream=stream)
            if stream:
                assert [chunk async for chunk in answer]
    assert [line["status"] for line in lines if line["event"] == "request"] == [200]


async def test_content_arrives_while_the_turn_is_running() -> None:
    service = ScriptedService(script=(Delta("first", 1),))
    async with sdk(service) as client:
        stream = await client.chat.completions.create(**ASKED, stream=True)
        chunks = aiter(stream)
        await anext(chunks)
        assert (await anext(chunks)).choices[0].delta.content == "first"
        turn = await service.turns.get()
        turn.tell(Delta("second", 1), Ended(Finish.STOP, 7, 5, 2))
        assert (await anext(chunks)).choices[0].delta.content == "second"


@pytest.mark.parametrize(
    ("refusal", "kind", "code"),
    [
        (PromptTooLong(tokens=9, limit=5), openai.BadRequestError, "context_length_exceeded"),
        (Overloaded("full"), openai.RateLimitError, "overloaded"),
        (Unavailable("starting"), openai.InternalServerError, "unavailable"),
        (TurnFailed("nan"), openai.InternalServerError, "turn_failed"),
        (ZeroDivisionError(), openai.InternalServerError, "internal"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_each_refusal_is_the_sdks_own_exception(
    refusal: Exception, kind: type[openai.APIStatusError], code: str, stream: bool
) -> None:
    async with sdk(ScriptedService(refusal=refusal)) as client:
        with pytest.raises(kind) as caught:
            await client.chat.completions.create(**ASKED, stream=stream)
    assert caught.value.code == code


async def test_an_error_in_mid_stream_is_raised_by_the_sdk() -> None:
    service = ScriptedService(script=(Delta("x", 1), TurnFailed("nan")))
    async with sdk(service) as client:
        stream = await client.chat.completions.create(**ASKED, stream=True)
        with pytest.raises(openai.APIError, match="the turn failed: nan"):
            _ = [chunk async for chunk in stream]


async def test_an_unknown_model_and_an_unknown_path_are_not_found() -> None:
    async with sdk(ScriptedService()) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(**ASKED | {"model": "gpt-9"})
        assert caught.value.code == "model_not_found"
        with pytest.raises(openai.NotFoundError):
            await client.embeddings.create(model="tiny", input="x")


async def test_a_body_over_the_limit_is_a_413_even_while_it_is_sent() -> None:
    async with sdk(ScriptedService()) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(**ASKED, user="x" * 20 * MAX_BODY)
    assert caught.value.status_code == 413


async def test_the_sdk_retries_what_is_worth_it_when_it_is_told_to() -> None:
    service = ScriptedService(refusal=Overloaded("full", retry_after=0.001))
    async with serving(service) as (_, url):
        client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=2)
        async with client:
            with pytest.raises(openai.RateLimitError):
                await client.chat.completions.create(**ASKED)
    assert len(service.asks) == 3


async def test_the_sdk_lists_the_models() -> None:
    async with sdk(ScriptedService()) as client:
        assert [model.id async for model in client.models.list()] == ["tiny", "vendor/tiny"]
        assert (await client.models.retrieve("vendor/tiny")).id == "vendor/tiny"


async def test_an_agents_name_reaches_the_service_and_is_exclusive() -> None:
    service = ScriptedService()
    async with sdk(service) as client:
        name = "../../etc/passwd"
        await client.chat.completions.create(**ASKED, extra_headers={"X-Agent-ID": name})
    assert (service.asks[0].identity.name, service.asks[0].identity.exclusive) == (name, True)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_sdk_that_gives_up_frees_its_place(stream: bool) -> None:
    service = ScriptedService(script=())
    async with sdk(service) as client:
        asking = asyncio.create_task(_all(client, stream))
        turn = await service.turns.get()
        asking.cancel()
        await turn.cancelled.wait()


async def test_an_sdk_that_gives_up_while_queued_is_not_admitted_later() -> None:
    service = ScriptedService()
    service.doors.clear()
    async with sdk(service) as client:
        asking = asyncio.create_task(_all(client, stream=False))
        await service.waiting.wait()
        asking.cancel()
        await service.gave_up.wait()
    assert service.turns.empty()


async def test_a_server_that_is_stopped_answers_those_who_are_running_and_no_others() -> None:
    service = ScriptedService(script=())
    async with serving(service) as (server, url):
        client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        async with client:
            asking = asyncio.create_task(client.chat.completions.create(**ASKED))
            turn = await service.turns.get()
            server.stop()
            await asyncio.sleep(0)  # the drain begins in the next round
            with pytest.raises(openai.InternalServerError, match="draining"):
                await client.chat.completions.create(**ASKED)
            turn.tell(*HELLO)
            assert (await asking).choices[0].message.content == "Hello"


async def test_a_request_that_breaks_http_does_not_disturb_the_next_one() -> None:
    async with serving(ScriptedService()) as (_, url):
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: -5\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 400")
        writer.close()
        client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        async with client:
            assert (await client.chat.completions.create(**ASKED)).choices


async def test_a_body_that_is_cut_off_asks_nothing_of_the_service() -> None:
    service = ScriptedService()
    async with serving(service) as (server, url):
        host, port = url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{"
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        server.stop()
    assert not service.asks


def test_a_port_that_is_taken_is_told_with_what_to_do() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=f"127.0.0.1:{port}.*choose another --port"):
            listen("127.0.0.1", port)


def test_a_host_that_is_not_ours_is_told() -> None:
    with pytest.raises(CannotListen, match=r"^cannot listen on 192\.0\.2\.1:0: "):
        listen("192.0.2.1", 0)


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_an_ipv6_address_is_bracketed_in_the_url() -> None:
    with listen("::1", 0) as listener:
        assert url_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"


async def _all(client: AsyncOpenAI, stream: bool) -> None:
    answer = await client.chat.completions.create(**ASKED, stream=stream)
    if stream:
        async for _ in answer:
            pass
