"""Request bodies that clients compressed: taken apart within a limit, whatever they claim."""

import io
import zlib

import zstandard
from starlette.exceptions import HTTPException

CODINGS = ("gzip", "zstd")  # as RFC 9110 and 8878 name them; Codex sends the second
_WIDEST = 1 << 23  # bytes of history that a zstd frame may need: what RFC 8878 asks of everybody
_GZIP = 16 + zlib.MAX_WBITS


class TooLarge(Exception):
    """More comes out than is allowed."""


def coding_of(header: str) -> str:
    """The one coding that a Content-Encoding header names; "" for none. Raises HTTPException 415.

    A body that was compressed more than once is not taken: nobody sends one for a good reason.
    """
    coding = header.strip().lower().removeprefix("x-")
    if coding in ("", "identity"):
        return ""
    if coding not in CODINGS:
        known = ", ".join(CODINGS)
        problem = f"bodies in {header[:64]!r} are not understood: send plain JSON, or {known}"
        raise HTTPException(415, problem, {"accept-encoding": known})
    return coding


def decompressed(body: bytes, coding: str, limit: int) -> bytes:
    """What `body` is compressed from. Raises TooLarge beyond `limit` bytes, ValueError for rubbish.

    Never holds more than `limit` bytes and a little of it.
    """
    out = _gunzipped(body, limit) if coding == "gzip" else _unzstd(body, limit)
    if len(out) > limit:
        raise TooLarge
    return out


def _gunzipped(body: bytes, limit: int) -> bytes:
    """All members of the file, as RFC 1952 allows several."""
    out = bytearray()
    while body and len(out) <= limit:
        member = zlib.decompressobj(_GZIP)
        try:
            out += member.decompress(body, limit + 1 - len(out))
        except zlib.error as error:
            raise ValueError(f"the body is not gzip: {error}") from None
        if not member.eof and len(out) <= limit:
            raise ValueError("the body is not gzip: it ends too early")
        body = member.unused_data
    return bytes(out)


def _unzstd(body: bytes, limit: int) -> bytes:
    reader = zstandard.ZstdDecompressor(max_window_size=_WIDEST).stream_reader(
        io.BytesIO(body), read_across_frames=True
    )
    try:
        with reader:
            return reader.read(limit + 1)
    except zstandard.ZstdError as error:
        raise ValueError(f"the body is not zstd: {error}") from None
