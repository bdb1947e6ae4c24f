"""What all endpoints share: the service, the limits, and the turns that are being answered."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self, TypeVar

import msgspec
from attrs import define, evolve, field
from starlette.requests import Request

from agentcache.adapters.http.body import read_json
from agentcache.adapters.http.connection import while_connected
from agentcache.adapters.http.gate import access_of, require_admin
from agentcache.adapters.http.rates import RateLimiter
from agentcache.adapters.http.request_scope import add_headers
from agentcache.adapters.http.wishes import with_wishes
from agentcache.domain.errors import AgentCacheError, InvalidRequest, Unavailable, refusal
from agentcache.service import Ask, RunningTurn, Service
from agentcache.settings import Settings, parse_rate

_Body = TypeVar("_Body")
_TELLING = 10.0  # seconds for a step to end, after which those who were cancelled are told so


@define(eq=False)
class Edge:
    """The way from requests to `service`. `keep_alive` is in seconds, `max_body` in bytes.

    A request has at most `max_messages`; None: any number.
    """

    service: Service
    max_body: int
    keep_alive: float = 15.0
    rates: RateLimiter = field(factory=RateLimiter)
    max_messages: int | None = None
    draining: bool = field(default=False, init=False)
    _beginning: "set[asyncio.Task[object]]" = field(factory=set, init=False)
    _turns: dict[str, RunningTurn] = field(factory=dict, init=False)
    _changed: asyncio.Event = field(factory=asyncio.Event, init=False)

    @classmethod
    def of(cls, service: Service, settings: Settings) -> Self:
        """The way to `service` with the limits that the settings name."""
        rates = RateLimiter(parse_rate(settings.rate_limit), parse_rate(settings.agent_rate_limit))
        return cls(service, settings.max_body, rates=rates, max_messages=settings.max_messages)

    async def read(self, request: Request, decoder: msgspec.json.Decoder[_Body]) -> _Body:
        """The body of a request that carries a conversation. Raises what `read_json` does."""
        body = await read_json(request, decoder, self.max_body)
        for name in ("messages", "input"):
            count = len(said) if isinstance(said := getattr(body, name, None), list) else 0
            if self.max_messages is not None and count > self.max_messages:
                problem = f"{name} has {count} items: at most {self.max_messages} are taken"
                raise InvalidRequest(problem, name)
        return body

    async def admit(self, ask: Ask, request: Request) -> RunningTurn:
        """Begin a turn of the request's tenant, which its taker must `end`.

        Raises ClientDisconnect, InvalidRequest for a header that makes no sense, Overloaded for a
        turn over the limits, or what begin does.
        """
        identity = evolve(ask.identity, tenant=access_of(request.scope).tenant)
        with self.counted():
            if self.draining:
                raise Unavailable("draining")
            ask = with_wishes(evolve(ask, identity=identity), request.headers)
            try:
                await self.rates.take(identity)
            finally:
                add_headers(request.scope, await self.rates.headers(identity))
        turn: RunningTurn | None = None
        try:
            with self._refusable():
                async with while_connected(request.receive):
                    turn = await self.service.begin(ask)
                    self._turns[turn.id] = turn
        except BaseException:
            if turn is not None:
                await self.end(turn)
            raise
        return turn

    def require_admin(self, request: Request) -> None:
        """Raise Forbidden unless the request comes with admin rights."""
        with self.counted():
            require_admin(request.scope)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what is refused in the block, of which the service knows nothing."""
        try:
            yield
        except AgentCacheError as error:
            self.service.telemetry.refused(refusal(error))
            raise

    async def end(self, turn: RunningTurn) -> None:
        """Give the turn's place back, if it did not end by itself."""
        self._turns.pop(turn.id, None)
        self._changed.set()
        await turn.cancel()

    async def drain(self, patience: float) -> None:
        """Refuse new turns, and those that have no place yet; return when all others are answered.

        What still runs after `patience` seconds is cancelled, and its client told to come back.
        """
        self.draining = True
        beginning, self._beginning = self._beginning, set()
        for task in beginning:
            task.cancel()
        await self._answered(patience)
        for turn in tuple(self._turns.values()):
            await turn.cancel(Unavailable("draining"))
        await self._answered(_TELLING)

    async def _answered(self, seconds: float) -> None:
        """Return when no turn is being answered, or after so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._turns:
                    await self._changed.wait()
                    self._changed.clear()

    @contextmanager
    def _refusable(self) -> Iterator[None]:
        """What awaits a place in the block is told Unavailable when draining begins."""
        task = asyncio.current_task()
        assert task is not None
        self._beginning.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if task in self._beginning or task.uncancel() > 0:
                raise
            raise Unavailable("draining") from None
        finally:
            self._beginning.discard(task)
            self._changed.set()
