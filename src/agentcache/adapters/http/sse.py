"""Server-sent events: a turn's events as a stream that keeps alive and ends with its client."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Self
from uuid import uuid4

import msgspec
from attrs import frozen
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from agentcache.adapters.http.connection import while_connected
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.request_scope import straight
from agentcache.service import RunningTurn

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode
TEXT, NUMBER = uuid4().hex, uuid4().int >> 75  # no client can have put these into an event
_LINE_ENDS = {
    character.encode(): b"\\u%04x" % ord(character) for character in ("\u0085", "\u2028", "\u2029")
}


def data(value: msgspec.Struct) -> bytes:
    """One unnamed event that carries `value` as JSON."""
    return b"data: " + on_one_line(value) + b"\n\n"


def on_one_line(value: msgspec.Struct | str | int) -> bytes:
    """`value` as JSON without what some clients take for the end of a line: it is escaped."""
    encoded = _encode(value)
    if not encoded.isascii():
        for character, escaped in _LINE_ENDS.items():
            encoded = encoded.replace(character, escaped)
    return encoded


@frozen
class Template:
    """An event in which nothing but a text and a number changes: all the rest is made once.

    JSON is quickly made, but less code and fewer objects stay longer in a processor's caches, which
    a model empties between two tokens.
    """

    pieces: tuple[bytes, ...]

    @classmethod
    def of(cls, event: Callable[..., bytes], *gaps: str | int) -> Self:
        """`event` makes an event of values, which it has in the order of `gaps`: TEXT, NUMBER."""
        rest, pieces = event(*gaps), []
        for gap in gaps:
            piece, rest = rest.split(_encode(gap))
            pieces.append(piece)
        return cls((*pieces, rest))

    def filled(self, *values: str | int) -> bytes:
        """The event with these values."""
        told = self.pieces[0]
        for value, piece in zip(values, self.pieces[1:], strict=True):
            told += on_one_line(value) + piece
        return told


class TurnStream(StreamingResponse):
    """Sends `frames` for as long as the client is there; then the turn's place is given back."""

    def __init__(
        self,
        edge: Edge,
        turn: RunningTurn,
        frames: AsyncGenerator[bytes],
        headers: Mapping[str, str],
    ) -> None:
        headers = {**headers, "cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(frames, headers=headers, media_type="text/event-stream")
        self._edge, self._turn, self._frames = edge, turn, frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Not the inherited one: that notices a lost client only by some servers' help.

        The frames are sent by a task of their own, because each of them would wake every layer of
        the application that awaits this call. Once an answer is complete, servers tell that its
        client is gone: it is ended when nobody listens to that any more.
        """
        try:
            async with while_connected(receive), aclosing(self._frames):
                start = {"type": "http.response.start", "status": self.status_code}
                await send({**start, "headers": self.raw_headers})
                await asyncio.create_task(self._send_frames(straight(scope, send)))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._edge.end(self._turn)

    async def _send_frames(self, send: Send) -> None:
        async for frame in self._frames:
            if frame:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
