"""Compressed bodies: read as if they were plain, and bounded by what they are once unpacked."""

import gzip
import json
import tracemalloc
from contextlib import suppress

import httpx
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from agentcache.adapters.http.compression import TooLarge, decompressed
from tests.scripted_service import ASKED, ScriptedService, app_of, client_of

pytestmark = pytest.mark.anyio
LIMIT = 100_000
PACK = {"gzip": gzip.compress, "zstd": zstandard.compress}
CODINGS = pytest.mark.parametrize("coding", PACK)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def _padded(size: int) -> bytes:
    empty = json.dumps(ASKED | {"user": ""}).encode()
    return json.dumps(ASKED | {"user": "x" * (size - len(empty))}).encode()


async def _post(content: bytes, encoding: str) -> httpx.Response:
    async with client_of(app_of(ScriptedService(), LIMIT)) as client:
        headers = {"content-encoding": encoding.encode()}
        return await client.post("/v1/chat/completions", content=content, headers=headers)


@CODINGS
@pytest.mark.parametrize("spelled", ["{}", " {} ", "x-{}"])
async def test_a_compressed_body_is_what_it_was_compressed_from(coding: str, spelled: str) -> None:
    name = spelled.format(coding).upper()
    assert (await _post(PACK[coding](_padded(50_000)), name)).status_code == 200


@CODINGS
async def test_the_limit_is_that_of_the_body_once_unpacked(coding: str) -> None:
    assert (await _post(PACK[coding](_padded(LIMIT)), coding)).status_code == 200
    refused = await _post(PACK[coding](_padded(LIMIT + 1)), coding)
    assert refused.status_code == 413
    assert f"larger than {LIMIT} bytes" in refused.json()["error"]["message"]


@CODINGS
def test_a_bomb_is_given_up_before_it_takes_room(coding: str) -> None:
    bomb = PACK[coding](b" " * 50_000_000)
    assert len(bomb) < LIMIT
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            decompressed(bomb, coding, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_frame_that_wants_more_history_than_anybody_has_to_keep_is_refused() -> None:
    wide = zstandard.ZstdCompressionParameters(window_log=27, format=zstandard.FORMAT_ZSTD1)
    packed = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    body = packed.compress(b"x" * 1000) + packed.flush()
    with pytest.raises(ValueError, match="not zstd"):
        decompressed(body, "zstd", LIMIT)


@CODINGS
async def test_what_was_cut_off_or_is_something_else_is_a_400(coding: str) -> None:
    whole = PACK[coding](_padded(5_000))
    for body in (b"", b"{}", whole[: len(whole) // 2], whole[1:], json.dumps(ASKED).encode()):
        refused = await _post(body, coding)
        assert refused.status_code == 400, body
        assert refused.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, zstd", "gzip,gzip", "é", "x" * 999])
async def test_other_codings_are_refused_with_those_that_are_taken(encoding: str) -> None:
    refused = await _post(b"{}", encoding)
    assert refused.status_code == 415
    assert refused.headers["accept-encoding"] == "gzip, zstd"


@CODINGS
def test_files_that_were_put_together_are_read_to_their_end(coding: str) -> None:
    assert decompressed(PACK[coding](b"one ") + PACK[coding](b"two"), coding, 100) == b"one two"


@given(st.sampled_from(sorted(PACK)), st.binary(max_size=200))
def test_no_bytes_do_harm(coding: str, body: bytes) -> None:
    with suppress(TooLarge, ValueError):
        assert len(decompressed(body, coding, 1000)) <= 1000
