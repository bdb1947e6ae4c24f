"""Server-sent events: a turn's events as a stream that keeps alive and ends with its client."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
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
_LINE_ENDS = {"\u0085": b"\\u0085", "\u2028": b"\\u2028", "\u2029": b"\\u2029"}


def data(value: msgspec.Struct) -> bytes:
    """One unnamed event that carries `value` as JSON."""
    return b"data: " + on_one_line(value) + b"\n\n"


def on_one_line(value: msgspec.Struct) -> bytes:
    """`value` as JSON without what some clients take for the end of a line: it is escaped."""
    encoded = _encode(value)
    for character, escaped in _LINE_ENDS.items():
        encoded = encoded.replace(character.encode(), escaped)
    return encoded


async def events_or_pauses(
    turn: AsyncIterable[Delta | Ended], pause: float
) -> AsyncGenerator[Delta | Ended | None]:
    """The turn's events, and None whenever there was none for `pause` seconds."""
    told: asyncio.Queue[Delta | Ended | None] = asyncio.Queue()
    listening = asyncio.create_task(_listen(turn, told))
    alarm = _alarm(told, pause)
    try:
        while not (listening.done() and told.empty()):
            event = await told.get()
            alarm.cancel()
            if event is not None or not listening.done():
                yield event
            alarm = _alarm(told, pause)
        await listening  # raises what ended it
    finally:
        alarm.cancel()
        if not listening.cancel() and not listening.cancelled():
            listening.exception()  # nobody is there to be told


def _alarm(told: "asyncio.Queue[Delta | Ended | None]", pause: float) -> asyncio.TimerHandle:
    return asyncio.get_running_loop().call_later(pause, told.put_nowait, None)


async def _listen(
    turn: AsyncIterable[Delta | Ended], told: "asyncio.Queue[Delta | Ended | None]"
) -> None:
    try:
        async for event in turn:
            told.put_nowait(event)
    finally:
        told.put_nowait(None)  # whoever waits for more looks again


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
