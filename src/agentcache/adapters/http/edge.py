"""What all endpoints share: the service, the limits, and the turns that are being answered."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from attrs import define, evolve, field
from starlette.requests import Request

from agentcache.adapters.http.connection import while_connected
from agentcache.adapters.http.gate import access_of
from agentcache.adapters.http.rates import RateLimiter
from agentcache.adapters.http.request_scope import add_headers
from agentcache.domain.errors import Unavailable
from agentcache.service import Ask, RunningTurn, Service


@define(eq=False)
class Edge:
    """The way from requests to `service`. `keep_alive` is in seconds, `max_body` in bytes."""

    service: Service
    max_body: int
    keep_alive: float = 15.0
    rates: RateLimiter = field(factory=RateLimiter)
    draining: bool = field(default=False, init=False)
    _turns: dict[str, RunningTurn] = field(factory=dict, init=False)
    _requests: int = field(default=0, init=False)
    _idle: asyncio.Event = field(factory=asyncio.Event, init=False)

    async def admit(self, ask: Ask, request: Request) -> RunningTurn:
        """Begin a turn of the request's tenant, which its taker must `end`.

        Raises ClientDisconnect, Overloaded for a turn over the limits, or what begin does.
        """
        if self.draining:
            raise Unavailable("draining")
        identity = evolve(ask.identity, tenant=access_of(request.scope).tenant)
        add_headers(request.scope, await self.rates.take(identity))
        ask = evolve(ask, identity=identity)
        turn: RunningTurn | None = None
        try:
            async with while_connected(request.receive):
                turn = await self.service.begin(ask)
                self._turns[turn.id] = turn
        except BaseException:
            if turn is not None:
                await self.end(turn)
            raise
        return turn

    async def end(self, turn: RunningTurn) -> None:
        """Give the turn's place back, if it did not end by itself."""
        self._turns.pop(turn.id, None)
        await turn.cancel()

    @contextmanager
    def attending(self) -> Iterator[None]:
        """A request is being answered."""
        self._requests += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._requests -= 1
            if not self._requests:
                self._idle.set()

    async def drain(self, patience: float) -> None:
        """Refuse new turns; return when all others are answered, at the latest in `patience` s.

        What runs then is cancelled, and its client told so.
        """
        self.draining = True
        if self._requests:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._idle.wait()
        for turn in tuple(self._turns.values()):
            await turn.cancel()
