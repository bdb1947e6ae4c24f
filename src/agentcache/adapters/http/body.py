"""Reading a request's body: bounded while it arrives, then decoded into a typed value."""

import re
from typing import TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request

from agentcache.domain.errors import InvalidRequest

_Body = TypeVar("_Body")


async def read_json(request: Request, decoder: msgspec.json.Decoder[_Body], limit: int) -> _Body:
    """The body as `decoder`'s type. Raises HTTPException (413, 415) or InvalidRequest."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, "compressed bodies are not understood: send plain JSON")
    body = await _read(request, limit)
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(str(error), _path(str(error))) from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InvalidRequest(f"the body is not JSON in UTF-8: {error}") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None


async def _read(request: Request, limit: int) -> bytes:
    """The whole body. What it says of its length only ever lets us refuse it sooner."""
    declared = request.headers.get("content-length", "")
    if re.fullmatch("[0-9]{1,18}", declared) and int(declared) > limit:
        raise _too_large(limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"the body is larger than {limit} bytes")


def _path(problem: str) -> str | None:
    """The field that msgspec complains of: "... - at `$.messages[0].role`"."""
    found = re.search(r"at `\$\.([^`]*)`$", problem) or re.search(r"field `(\w+)`$", problem)
    return found[1] if found else None
