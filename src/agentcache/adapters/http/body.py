"""Reading a request's body: bounded in size and time while it arrives, then decoded."""

import asyncio
import re
from collections.abc import AsyncIterator
from itertools import accumulate
from typing import TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request

from agentcache.adapters.http.compression import TooLarge, coding_of, decompressed
from agentcache.domain.errors import InvalidRequest

DEEPEST = 100  # levels of arrays and objects; whoever walks the body later may take a few each
PATIENCE = 20.0  # seconds that a body may take to arrive, apart from
LEAST_RATE = 10_000  # the time that this many bytes a second take
_Body = TypeVar("_Body")


async def read_json(request: Request, decoder: msgspec.json.Decoder[_Body], limit: int) -> _Body:
    """The body as `decoder`'s type; `limit` bytes are what it may have, decompressed too.

    Raises HTTPException (408, 413, 415) or InvalidRequest.
    """
    body = await _read(request, limit)
    if _is_too_deep(body):
        raise InvalidRequest(f"the body is nested more than {DEEPEST} levels deep")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(str(error), _path(str(error))) from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InvalidRequest(f"the body is not JSON in UTF-8: {error}") from None


async def _read(request: Request, limit: int) -> bytes:
    coding = coding_of(request.headers.get("content-encoding", ""))
    body = bytearray()
    async for chunk in chunks(request, limit):
        body += chunk
    if not coding:
        return bytes(body)
    try:
        return decompressed(bytes(body), coding, limit)
    except TooLarge:
        raise _too_large(limit) from None
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


def _is_too_deep(body: bytes) -> bool:
    """Whether more arrays and objects are open at once than may be."""
    brackets = _STRING.sub(b"", body).translate(None, _BUT_BRACKETS)
    if brackets.count(b"[") + brackets.count(b"{") <= DEEPEST:
        return False
    return any(depth > DEEPEST for depth in accumulate(map(_STEPS.__getitem__, brackets)))


_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_BUT_BRACKETS = bytes(byte for byte in range(256) if byte not in _STEPS)


async def chunks(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it arrives. Raises HTTPException (408, 413) when it is too slow or too large.

    What it says of its length only ever lets us refuse it sooner.
    """
    declared = request.headers.get("content-length", "")
    if re.fullmatch("[0-9]{1,18}", declared) and int(declared) > limit:
        raise _too_large(limit)
    stream = aiter(request.stream())
    began, length = asyncio.get_running_loop().time(), 0
    while (chunk := await _next(stream, began + PATIENCE + length / LEAST_RATE)) is not None:
        length += len(chunk)
        if length > limit:
            raise _too_large(limit)
        yield chunk


async def _next(stream: AsyncIterator[bytes], until: float) -> bytes | None:
    try:
        async with asyncio.timeout_at(until):
            return await anext(stream, None)
    except TimeoutError:
        raise HTTPException(408, "the body arrives too slowly: send it again") from None


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"the body is larger than {int(limit)} bytes")


def _path(problem: str) -> str | None:
    """The field that msgspec complains of: "... - at `$.messages[0].role`"."""
    found = re.search(r"at `\$\.([^`]*)`$", problem) or re.search(r"field `(\w+)`$", problem)
    return found[1] if found else None
