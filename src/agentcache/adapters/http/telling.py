"""A turn that has its place, told as its dialect has it: as a stream, or whole."""

from typing import Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from agentcache.adapters.http.cache_headers import cache_headers
from agentcache.adapters.http.connection import while_connected
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.hearing import Frames, hear
from agentcache.adapters.http.sse import TurnStream
from agentcache.service import RunningTurn

_encode = msgspec.json.Encoder().encode


class Told(Protocol):
    """One turn in the words of a dialect."""

    @property
    def turn(self) -> RunningTurn:
        """The turn."""
        ...

    async def whole(self) -> msgspec.Struct:
        """The answer when it is complete. Raises TurnFailed or TurnCancelled."""
        ...

    def frames(self) -> Frames:
        """The answer as it comes."""
        ...


async def tell(edge: Edge, told: Told, request: Request, stream: bool | None) -> Response:
    """The response that tells the turn; its place is given back when it is over."""
    headers = cache_headers(told.turn.admitted)
    if stream:
        frames = hear(told.turn, told.frames(), edge.keep_alive)
        return TurnStream(edge, told.turn, frames, headers)
    try:
        async with while_connected(request.receive):
            answer = await told.whole()
    finally:
        await edge.end(told.turn)
    return Response(_encode(answer), 200, headers, "application/json")
