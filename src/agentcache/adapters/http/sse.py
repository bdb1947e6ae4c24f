"""Server-sent events: a turn's events as a stream that keeps alive and ends with its client."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import aclosing

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from agentcache.adapters.http.connection import while_connected
from agentcache.adapters.http.edge import Edge
from agentcache.domain.events import Delta, Ended
from agentcache.service import RunningTurn

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


def data(value: msgspec.Struct) -> bytes:
    """One unnamed event that carries `value` as JSON."""
    return b"data: " + _encode(value) + b"\n\n"


async def events_or_pauses(
    turn: AsyncIterable[Delta | Ended], pause: float
) -> AsyncGenerator[Delta | Ended | None]:
    """The turn's events, and None whenever there was none for `pause` seconds."""
    events = aiter(turn)
    coming = asyncio.ensure_future(_next(events))
    try:
        while True:
            await asyncio.wait((coming,), timeout=pause)
            if not coming.done():
                yield None
                continue
            event = coming.result()
            if event is None:
                return
            yield event
            coming = asyncio.ensure_future(_next(events))
    finally:
        coming.cancel()


async def _next(events: AsyncIterator[Delta | Ended]) -> Delta | Ended | None:
    return await anext(events, None)


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
        """Not the inherited one: that notices a lost client only by some servers' help."""
        try:
            async with while_connected(receive), aclosing(self._frames):
                await self.stream_response(send)
        finally:
            await self._edge.end(self._turn)
