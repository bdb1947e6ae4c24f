"""What a user can ask for. One turn, read top-down:

`begin` recognises the conversation and renders it in a worker thread, hands it to the engine
thread, and returns once the turn has its place (`Admitted`). Whoever asked then iterates over what
is said until it `Ended`. Nothing here blocks the event loop, and nothing here touches the engine.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path

from attrs import define, field, frozen

from agentcache.agents import Agents
from agentcache.domain.answer import Reading
from agentcache.domain.conversation import Conversation
from agentcache.domain.errors import (
    AgentCacheError,
    InvalidRequest,
    ModelError,
    TurnCancelled,
    TurnFailed,
    Unavailable,
    refusal,
)
from agentcache.domain.events import Admitted, Delta, Ended, Event
from agentcache.domain.planner import CLIENT_LEFT
from agentcache.domain.request import Finish, TurnRequest
from agentcache.inbox import Bell, Inbox
from agentcache.loop import EngineLoop, Ticket
from agentcache.model_shelf import ModelShelf
from agentcache.porting import Porter
from agentcache.ports.engine import ModelCard
from agentcache.ports.telemetry import TurnTelemetry
from agentcache.preparing import Ask, prepared

__all__ = ["Ask", "Health", "RunningTurn", "Service"]

_LONGEST_SWAP = 3600.0  # seconds that turns may be waited for


@frozen
class Health:
    """`live`: the process can go on; `ready`: it takes turns; `started`: it has done so once."""

    live: bool
    ready: bool
    started: bool
    detail: Mapping[str, str | int | float]


@define(eq=False)
class RunningTurn:
    """A turn that has its place. Iterate over it for Delta..., Ended, or take the `next` of these.
    It can be cancelled.

    It was `asked` for then, in wall-clock seconds.
    """

    id: str
    asked: float
    admitted: Admitted
    reading: Reading
    _ticket: Ticket
    _inbox: Inbox[Event | AgentCacheError]
    _loop: EngineLoop
    _over: bool = field(default=False, init=False)
    _cancelled: bool = field(default=False, init=False)

    async def __aiter__(self) -> AsyncIterator[Delta | Ended]:
        """What is said, as it is said; the last item is Ended. Raises what `next` raises."""
        while not self._over:
            if (event := await self.next()) is not None:
                yield event

    async def next(self, pause: float = math.inf) -> Delta | Ended | None:
        """What is said next; None when nothing was said for `pause` seconds. Ended is the last.

        Raises TurnFailed, TurnCancelled or Unavailable when the turn ends otherwise.
        """
        event = await self._inbox.get(pause)
        if event is None or isinstance(event, Delta):
            return event
        assert not isinstance(event, Admitted), "a turn is admitted twice"
        self._over = True
        self._inbox.close()
        if isinstance(event, AgentCacheError):
            raise event
        _raise_unless_complete(event)
        return event

    async def cancel(self, why: AgentCacheError = CLIENT_LEFT) -> None:
        """Stop it because of `why`, which whoever listens is told. Idempotent.

        Its place is free within a step, what it computed is kept.
        """
        self._inbox.close()
        if not self._over and not self._cancelled:
            self._cancelled = True
            self._loop.cancel(self._ticket, why)


@define(eq=False)
class Service(Agents):
    """The use cases, over one engine loop. For use from one event loop.

    What can be done with agents apart from talking to them is in `Agents`. `patience` is how many
    seconds a turn waits for a place at most. Other models are on the `shelf`.
    """

    _patience: float = 60.0
    _shelf: ModelShelf | None = None
    _porter: Porter | None = None
    _bell: Bell | None = field(default=None, init=False)

    @property
    def model(self) -> ModelCard:
        """The model that is served. Raises Unavailable while there is none."""
        return self._loop.conductor.engine.card

    @property
    def telemetry(self) -> TurnTelemetry:
        """Whoever counts turns; an edge tells of those that it refuses itself."""
        return self._loop.telemetry

    def models(self) -> tuple[str, ...]:
        """The names of the models that turns can be asked of."""
        return (self.model.name,)

    def piece(self, token: int) -> bytes:
        """The bytes of one token of the model. Raises Unavailable while there is none."""
        return self._loop.conductor.tokenizer.piece(token)

    def check_codec(self, name: str) -> None:
        """Raise InvalidRequest unless rows can be kept with this codec; Unavailable."""
        self._loop.conductor.roots.codecs.get(name)

    async def count_tokens(self, conversation: Conversation) -> int:
        """How many tokens the prompt of `conversation` has. Raises InvalidRequest, Unavailable."""
        builder = self._loop.conductor.builder
        return len(await asyncio.to_thread(builder.build, conversation))

    async def begin(self, ask: Ask) -> RunningTurn:
        """Start a turn; returns once it has its place and what could be restored is restored.

        Raises InvalidRequest (PromptTooLong among them), Overloaded when no place became free in
        time, Unavailable, TurnFailed. Cancelling the call cancels the turn.
        """
        try:
            return await self._begun(ask)
        except AgentCacheError as error:
            if not isinstance(error, TurnFailed):
                self._loop.telemetry.refused(refusal(error))
            raise
        except asyncio.CancelledError:
            self._loop.telemetry.refused("cancelled")
            raise

    def known_models(self) -> tuple[str, ...]:
        """What the models kept on this machine are swapped to by. Looks at the disk."""
        return self._shelf.known() if self._shelf is not None else ()

    async def swap(self, ref: str, within: float = 30.0) -> ModelCard:
        """Serve the model `ref` in place of the present one, once it is on disk.

        Until the other one is loaded, turns are refused (Unavailable); those that run finish
        `within` seconds, or are cut off then, and what they computed is kept. Every agent of the
        present model goes on when that one is swapped back. Raises ModelError when the model
        cannot be found, fetched or loaded (then the present one is served again), Unavailable when
        there is another swap. Cancelling the call ends nothing once the turns are refused.
        """
        if self._shelf is None:
            raise ModelError(ref, "this service cannot change its model")
        if not 0 <= within <= _LONGEST_SWAP:
            raise InvalidRequest(f"within must be 0 to {_LONGEST_SWAP:.0f} seconds", "within")
        if self._loop.phase != "serving":
            raise Unavailable(self._loop.phase)
        found = await asyncio.wrap_future(self._shelf.find(ref))
        if found.folder.digest == self.model.digest:
            return self.model
        swapped = asyncio.wrap_future(self._loop.swap(found.assembly, within))
        try:
            return await asyncio.shield(swapped)
        except AgentCacheError:
            raise
        except Exception as error:
            problem = f"it cannot be loaded: {type(error).__name__}: {error}"
            raise ModelError(ref, problem, "The model from before is served again") from None

    def export(self, tenant: str, name: str, path: Path) -> int:
        """Write an agent to the file `path`; blocks. See `Porter.export`."""
        return self._carrier().export(tenant, name, path)

    def take_in(self, tenant: str, path: Path, name: str | None, replace: bool = False) -> str:
        """Import an agent from the file `path`; blocks. See `Porter.take_in`."""
        return self._carrier().take_in(tenant, path, name, replace)

    def health(self) -> Health:
        """How the service is, for probes."""
        phase, stalled = self._loop.phase, self._loop.is_stalled
        live = self._loop.is_alive() and not stalled
        detail: dict[str, str | int | float] = {"phase": phase}
        if stalled:
            detail["engine"] = f"has not finished a step for {self._loop.silence:.0f} s"
        ready = live and phase == "serving"
        if ready and (trouble := self._loop.conductor.keeper.read_only):
            detail["store"] = f"read-only: {trouble}"
        return Health(live, ready, self._loop.beat > 0, detail)

    # -- inside ------------------------------------------------------------------------------

    def _carrier(self) -> Porter:
        if self._porter is None:
            raise InvalidRequest("this service cannot export or import agents")
        return self._porter

    async def _begun(self, ask: Ask) -> RunningTurn:
        request = await asyncio.to_thread(self._prepared, ask)
        inbox: Inbox[Event | AgentCacheError] = Inbox()
        emit = partial(self._bell_here().put, inbox)
        submitted = asyncio.wrap_future(self._loop.submit(request, emit))
        try:
            ticket = await asyncio.shield(submitted)
            admitted = await self._admitted(inbox)
        except asyncio.CancelledError:
            submitted.add_done_callback(self._cancel_submitted)
            raise
        return RunningTurn(
            request.id, request.asked, admitted, request.reading, ticket, inbox, self._loop
        )

    def _prepared(self, ask: Ask) -> TurnRequest:
        conductor = self._loop.conductor
        conductor.planner.check_queue()  # before a turn costs anything that would be refused anyway
        patience = self._patience if ask.timeout is None else min(ask.timeout, self._patience)
        deadline = self._clock.monotonic() + patience
        return prepared(ask, conductor, deadline, self._clock.wall())

    def _bell_here(self) -> Bell:
        """The bell of the running event loop, of which there is one for all turns."""
        here = asyncio.get_running_loop()
        if self._bell is None or self._bell.loop is not here:
            self._bell = Bell(here)
        return self._bell

    async def _admitted(self, inbox: Inbox[Event | AgentCacheError]) -> Admitted:
        event = await inbox.get()
        if isinstance(event, AgentCacheError):
            raise event
        if isinstance(event, Ended):
            _raise_unless_complete(event)
        assert isinstance(event, Admitted), f"{event} came before Admitted"
        return event

    def _cancel_submitted(self, submitted: "asyncio.Future[Ticket]") -> None:
        if not submitted.cancelled() and submitted.exception() is None:
            self._loop.cancel(submitted.result())


def _raise_unless_complete(event: Ended) -> None:
    if event.finish is Finish.FAILED:
        raise TurnFailed(event.problem or "the engine failed")
    if event.finish is Finish.CANCELLED:
        raise TurnCancelled()
