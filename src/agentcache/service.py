"""What a user can ask for. One turn, read top-down:

`begin` recognises the conversation and renders it in a worker thread, hands it to the engine
thread, and returns once the turn has its place (`Admitted`). Whoever asked then iterates over what
is said until it `Ended`. Nothing here blocks the event loop, and nothing here touches the engine.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from uuid import uuid4

from attrs import define, evolve, field, frozen

from agentcache.domain.conversation import Conversation
from agentcache.domain.errors import (
    AgentCacheError,
    InvalidRequest,
    TurnCancelled,
    TurnFailed,
)
from agentcache.domain.events import Admitted, Delta, Ended, Event
from agentcache.domain.registry import SessionRegistry
from agentcache.domain.request import Finish, Identity, Miss, Sampling, TurnRequest
from agentcache.domain.segment import root_key
from agentcache.domain.session import Session, SessionKey
from agentcache.domain.spans import RenderedSpan
from agentcache.loop import EngineLoop
from agentcache.ports.clock import Clock
from agentcache.ports.engine import ModelCard
from agentcache.rendering import PromptBuilder
from agentcache.succession import NAMELESS

STALLED_SECONDS = 120.0


@frozen
class Ask:
    """One request: who asks, the conversation so far, and how to answer.

    `timeout` is how many seconds it may wait for a place; None: as long as the service allows.
    """

    identity: Identity
    conversation: Conversation
    sampling: Sampling = field(factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    store: bool = True
    timeout: float | None = None


@frozen
class Health:
    """`live`: the process can go on; `ready`: it takes turns; `started`: it has done so once."""

    live: bool
    ready: bool
    started: bool
    detail: Mapping[str, str | int | float]


@define(eq=False)
class RunningTurn:
    """A turn that has its place. Iterate over it for Delta..., Ended; or cancel it."""

    id: str
    admitted: Admitted
    _number: int
    _events: "asyncio.Queue[Event | AgentCacheError]"
    _loop: EngineLoop
    _over: bool = field(default=False, init=False)

    async def __aiter__(self) -> AsyncIterator[Delta | Ended]:
        """What is said, as it is said; the last item is Ended.

        Raises TurnFailed, TurnCancelled or Unavailable when the turn ends otherwise.
        """
        while not self._over:
            event = await self._events.get()
            if isinstance(event, AgentCacheError):
                self._over = True
                raise event
            if isinstance(event, Ended):
                self._over = True
                _raise_unless_complete(event)
            if not isinstance(event, Admitted):
                yield event

    async def cancel(self) -> None:
        """Stop it: its place is free within a step, what it computed is kept. Idempotent."""
        if not self._over:
            self._over = True
            self._loop.cancel(self._number)


@define(eq=False)
class Service:
    """The use cases, over one engine loop. For use from one event loop."""

    _loop: EngineLoop
    _builder: PromptBuilder
    _clock: Clock
    _card: ModelCard
    _codec: str
    _salt: bytes
    _patience: float = 60.0
    _registry: SessionRegistry = field(factory=SessionRegistry)

    @property
    def model(self) -> ModelCard:
        """The model that is served."""
        return self._card

    def models(self) -> tuple[str, ...]:
        """The names of the models that turns can be asked of."""
        return (self._card.name,)

    async def begin(self, ask: Ask) -> RunningTurn:
        """Start a turn; returns once it has its place and what could be restored is restored.

        Raises InvalidRequest (PromptTooLong among them), Overloaded when no place became free in
        time, Unavailable, TurnFailed. Cancelling the call cancels the turn.
        """
        request = await asyncio.to_thread(self._prepared, ask)
        here = asyncio.get_running_loop()
        events: asyncio.Queue[Event | AgentCacheError] = asyncio.Queue()

        def emit(event: Event | AgentCacheError) -> None:
            if not here.is_closed():
                here.call_soon_threadsafe(events.put_nowait, event)

        submitted = asyncio.wrap_future(self._loop.submit(request, emit))
        number = await asyncio.shield(submitted)
        try:
            admitted = await self._admitted(events)
        except asyncio.CancelledError:
            self._loop.cancel(number)
            raise
        return RunningTurn(request.id, admitted, number, events, self._loop)

    def health(self) -> Health:
        """How the service is, for probes."""
        stalled = self._clock.monotonic() - self._loop.beat > STALLED_SECONDS
        live = self._loop.is_alive() and not (stalled and self._loop.beat > 0)
        detail: dict[str, str | int | float] = {"phase": self._loop.phase}
        ready = live and self._loop.phase == "serving"
        if ready and (trouble := self._loop.conductor.keeper.read_only):
            detail["store"] = f"read-only: {trouble}"
        return Health(live, ready, self._loop.beat > 0, detail)

    # -- inside ------------------------------------------------------------------------------

    async def _admitted(self, events: "asyncio.Queue[Event | AgentCacheError]") -> Admitted:
        event = await events.get()
        if isinstance(event, AgentCacheError):
            raise event
        if isinstance(event, Ended):
            _raise_unless_complete(event)
        assert isinstance(event, Admitted), f"{event} came before Admitted"
        return event
