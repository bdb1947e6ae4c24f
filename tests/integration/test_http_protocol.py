"""What clients may keep open at the level of HTTP itself, over a real socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from agentcache.adapters.http.app import create_app
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.protocol import MOST_HEAD, HttpProtocol
from agentcache.adapters.http.server import HttpServer, listen
from tests.scripted_service import ScriptedService

pytestmark = pytest.mark.anyio
LIVE = b"GET /health/live HTTP/1.1\r\nhost: x\r\n"
PIECE = b"x" * 16_384


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def connected(
    service: ScriptedService | None = None,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    edge = Edge(service or ScriptedService(), 1_000_000)
    listener = listen("127.0.0.1", 0)
    server = HttpServer(create_app(edge), edge, listener)
    ready = asyncio.Event()
    running = asyncio.create_task(server.run(lambda _url: ready.set()))
    await ready.wait()
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        server.stop()
        await running


async def _pour(writer: asyncio.StreamWriter, *pieces: bytes) -> None:
    """Send `pieces`, the last one again and again until the server has had enough."""
    *first, last = pieces
    writer.writelines(first)
    try:
        while True:
            writer.write(last)
            await writer.drain()
    except ConnectionError:
        return


@pytest.mark.parametrize(
    "pieces",
    [
        (b"GET /", PIECE),
        (LIVE + b"a: ", PIECE),
        (LIVE, b"a: b\r\n" * 1000),
        (LIVE + b"transfer-encoding: chunked\r\n\r\n1;", PIECE),
        (LIVE + b"transfer-encoding: chunked\r\n\r\n0\r\na: ", PIECE),
        (LIVE + b"transfer-encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n" * 1000),
    ],
    ids=["line", "header", "headers", "extension", "trailer", "trailers"],
)
async def test_what_never_ends_and_is_no_body_is_cut_off(pieces: tuple[bytes, ...]) -> None:
    async with connected() as (_, writer):
        async with asyncio.timeout(60):
            await _pour(writer, *pieces)


async def test_a_head_that_is_too_long_is_told_so() -> None:
    async with connected() as (reader, writer):
        writer.write(LIVE + b"a: " + b"x" * (MOST_HEAD - len(LIVE) - 2))
        assert (await reader.readline()).startswith(b"HTTP/1.1 400")
        assert b"too large" in await reader.read()


async def test_a_head_that_is_just_short_enough_is_read_however_it_is_cut() -> None:
    async with connected() as (reader, writer):
        head = LIVE + b"a: " + b"x" * (MOST_HEAD - len(LIVE) - 7) + b"\r\n\r\n"
        for at in range(0, len(head), 10_000):
            writer.write(head[at : at + 10_000])
            await writer.drain()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")


async def test_a_body_may_be_longer_than_any_head() -> None:
    async with connected() as (reader, writer):
        body = b"[" + b" " * 5 * MOST_HEAD + b"]"
        size = str(len(body)).encode()
        writer.write(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: " + size + b"\r\n")
        writer.write(b"\r\n" + body)
        answer = await reader.readuntil(b"}")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"invalid_request_error" in answer


async def test_requests_on_one_connection_are_counted_each_on_its_own() -> None:
    async with connected() as (reader, writer):
        for _ in range(4):
            writer.write(LIVE + b"a: " + b"x" * (MOST_HEAD // 2) + b"\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            await reader.readuntil(b"}}")


CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
HIDDEN = b"GET /hidden HTTP/1.1\r\nhost: x\r\n\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"


@pytest.mark.parametrize(
    "shape",
    [
        CHAT + b"content-length: 5\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
        CHAT + CHUNKED + b"content-length: 5\r\n\r\n0\r\n\r\n",
        CHAT + b"content-length: 0\r\ncontent-length: 5\r\n\r\n",
        CHAT + b"content-length: 0, 5\r\n\r\n",
        CHAT + b"content-length: +0\r\n\r\n",
        CHAT + b"content-length: 0x0\r\n\r\n",
        CHAT + b"content-length: -1\r\n\r\n",
        CHAT + b"content-length : 0\r\n\r\n",
        CHAT + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        CHAT + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        CHAT + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        CHAT + CHUNKED + b"\r\n-1\r\n\r\n",
        CHAT + CHUNKED + b"\r\nfffffffffffffffff\r\n",
        CHAT + CHUNKED + b"\r\n1\nx\n0\n\n",
        CHAT + b"a: b\r\n c: d\r\n\r\n",
        CHAT + b"a\x00b: c\r\n\r\n",
        CHAT + b"a: \x00\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\nhost: x\n\n",
        b"POST /v1/chat/completions HTTP/9.9\r\n\r\n",
    ],
)
async def test_a_request_whose_end_is_in_doubt_hides_no_other_one(shape: bytes) -> None:
    """Two servers in a row may see it end at different places; so nothing behind it is answered."""
    async with connected() as (reader, writer):
        writer.write(shape + HIDDEN)
        writer.write_eof()
        async with asyncio.timeout(60):
            told = await reader.read()
    assert told.startswith(b"HTTP/1.1 400")
    assert told.count(b"HTTP/1.1 ") == 1
    assert b"/hidden" not in told


@pytest.mark.parametrize(
    "piece",
    [b"", b"GET /health/li", LIVE, LIVE + b"a: "],
    ids=["nothing", "half a line", "half a head", "half a header"],
)
async def test_a_head_that_does_not_come_is_not_awaited_for_ever(
    piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HttpProtocol, "patience", 0.05)
    async with connected() as (reader, writer):
        writer.write(piece)
        async with asyncio.timeout(60):
            assert await reader.read() == b""


async def _answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(LIVE + b"\r\n")
    assert (await reader.readuntil(b"}}")).startswith(b"HTTP/1.1 200")


async def test_nor_is_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected() as (reader, writer):
        await _answered(reader, writer)
        monkeypatch.setattr(HttpProtocol, "patience", 0.05)
        writer.write(LIVE)
        async with asyncio.timeout(60):
            assert await reader.read() == b""


async def test_nor_is_the_rest_of_a_body_that_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected() as (reader, writer):
        await _answered(reader, writer)
        monkeypatch.setattr(HttpProtocol, "patience", 0.05)
        writer.write(CHAT + b"content-length: 900000000000000000\r\n\r\n{")
        async with asyncio.timeout(60):
            assert (await reader.readline()).startswith(b"HTTP/1.1 413")
            await _pour(writer, PIECE)


async def test_an_answer_may_take_longer_than_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    expired = asyncio.Event()
    seen = HttpProtocol._expired

    def expire(self: HttpProtocol) -> None:
        seen(self)
        expired.set()

    monkeypatch.setattr(HttpProtocol, "_expired", expire)
    body = b'{"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}'
    service = ScriptedService()
    service.doors.clear()
    async with connected(service) as (reader, writer):
        await _answered(reader, writer)
        monkeypatch.setattr(HttpProtocol, "patience", 0.01)
        writer.write(CHAT + b"content-length: %d\r\n\r\n" % len(body) + body)
        await service.waiting.wait()
        writer.write(b"GET /health/li")  # sent behind it, and not complete while it is answered
        await expired.wait()
        service.doors.set()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")


async def test_a_server_that_is_told_to_stop_does_not_wait_until_it_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agentcache.adapters.http.server._TICK", 3600.0)
    async with asyncio.timeout(60), connected() as (reader, writer):
        writer.write(LIVE + b"\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
