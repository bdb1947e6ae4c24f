"""What can be done with agents apart from talking to them: look, fork, rewind, pin, forget.

Looking reads what the engine thread owns as it is at the moment, from any thread. Changing is done
on the engine thread, and has been committed when the call returns; where the home cannot be written
(see readiness), the change holds in memory, and is written as soon as something can be.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress

from attrs import define, evolve, frozen

from agentcache.conductor import Conductor
from agentcache.domain.conversation import Conversation, Message, turn_starts
from agentcache.domain.errors import AgentBusy, AgentExists, InvalidRequest, UnknownAgent
from agentcache.domain.lineage import Match, Step
from agentcache.domain.request import Tier
from agentcache.domain.session import Session, SessionKey
from agentcache.domain.tools import parsed_tools
from agentcache.loop import EngineLoop
from agentcache.outbox import Done
from agentcache.ports.clock import Clock
from agentcache.succession import NAMELESS, check_name, forked, rewound, stepped_back

_Change = Callable[[Conductor, Done], None]


@frozen
class AgentView:
    """One agent as it is at the moment.

    `turns` is how many can be taken back. `nbytes` are the encoded bytes that it builds on, of
    which others use `shared_bytes` too. `tier` is where its next turn finds its rows. Of all
    `prompt_tokens` that its turns had, `cached_tokens` were not computed again; `hits` turns had
    any of these. Times are wall-clock seconds.
    """

    name: str
    tenant: str
    model: str
    tokens: int
    messages: int
    turns: int
    pinned: bool
    expires: float | None
    parent: str | None
    created: float
    used: float
    tier: Tier
    nbytes: int
    shared_bytes: int
    hits: int
    prompt_tokens: int
    cached_tokens: int


@define(eq=False)
class Agents:
    """The agents of the model that is served. For use from one event loop.

    A turn that runs on an agent would undo its rewinding and forgetting: these are refused with
    AgentBusy meanwhile. A fork copies what was committed last.
    """

    _loop: EngineLoop
    _clock: Clock

    # -- looking -----------------------------------------------------------------------------

    def agents(self, tenant: str) -> tuple[AgentView, ...]:
        """Those of this tenant that have a name, by name. Raises Unavailable."""
        conductor = self._loop.conductor
        views = tuple(_views(conductor, tenant, conductor.root(tenant)))
        return tuple(sorted(views, key=lambda view: view.name))

    def agent(self, tenant: str, name: str) -> AgentView:
        """One agent. Raises UnknownAgent, Unavailable."""
        self._session(tenant, name)
        found = (view for view in self.agents(tenant) if view.name == name)
        view = next(found, None)
        if view is None:
            raise UnknownAgent(name)
        return view

    def history(self, tenant: str, name: str) -> tuple[Message, ...]:
        """The conversation as it was told. Raises UnknownAgent, Unavailable."""
        return self._session(tenant, name).messages

    # -- changing ----------------------------------------------------------------------------

    async def fork(self, tenant: str, name: str, new: str) -> None:
        """Let `new` remember all that `name` does. Copies no rows, whatever the length.

        Raises UnknownAgent, AgentExists, InvalidRequest for a name that cannot be one, Unavailable.
        """
        check_name(new)

        def change(conductor: Conductor, done: Done) -> None:
            key = SessionKey(tenant, conductor.root(tenant), new)
            session = _known(conductor, tenant, name)
            if conductor.keeper.registry.get(key) is not None or _is_busy(conductor, key):
                raise AgentExists(new)
            _write(conductor, forked(session, new, self._clock.wall()), done)

        await self._committed(change)

    async def rewind(self, tenant: str, name: str, turns: int) -> None:
        """Take the last `turns` turns back: what the user said, and all that came of it.

        Raises InvalidRequest unless there are so many, UnknownAgent, AgentBusy, Unavailable.
        """
        session = self._session(tenant, name)
        kept = _messages_before(session, turns)
        messages = session.messages[:kept]
        spans = await asyncio.to_thread(_count_spans, self._loop.conductor, session, messages)

        def change(conductor: Conductor, done: Done) -> None:
            now = _known(conductor, tenant, name)
            if _is_busy(conductor, now.key) or now.generation != session.generation:
                raise AgentBusy(name)
            _rewind(conductor, now, kept, spans, self._clock.wall(), done)

        await self._committed(change)

    async def pin(self, tenant: str, name: str, pinned: bool = True) -> None:
        """Keep the agent from being evicted, or no longer. Raises UnknownAgent, Unavailable."""
        await self._evolve(tenant, name, lambda session: evolve(session, pinned=pinned))

    async def expire(self, tenant: str, name: str, at: float | None) -> None:
        """Have the agent forgotten at `at`, in wall-clock seconds; None: never.

        Raises InvalidRequest for what is no time, UnknownAgent, Unavailable.
        """
        if at is not None and not math.isfinite(at):
            raise InvalidRequest(f"an agent expires at a time in seconds, not at {at}", "expires")
        await self._evolve(tenant, name, lambda session: evolve(session, expires=at))

    async def forget(self, tenant: str, name: str) -> None:
        """Delete the agent, pinned or not. Raises UnknownAgent, AgentBusy, Unavailable."""

        def change(conductor: Conductor, done: Done) -> None:
            session = _known(conductor, tenant, name)
            if _is_busy(conductor, session.key):
                raise AgentBusy(name)
            hot = conductor.planner.hot
            if (resting := hot.resting(session.key)) is not None:
                hot.drop(resting)
            conductor.keeper.forget(session.key, done)

        await self._committed(change)

    # -- inside ------------------------------------------------------------------------------

    def _session(self, tenant: str, name: str) -> Session:
        return _known(self._loop.conductor, tenant, name)

    async def _evolve(self, tenant: str, name: str, after: Callable[[Session], Session]) -> None:
        def change(conductor: Conductor, done: Done) -> None:
            _write(conductor, after(_known(conductor, tenant, name)), done)

        await self._committed(change)

    async def _committed(self, change: _Change) -> None:
        """Make `change` on the engine thread, and return when the home has been told."""
        written: Future[bool] = Future()
        await asyncio.wrap_future(
            self._loop.ask(lambda conductor: change(conductor, written.set_result))
        )
        await asyncio.wrap_future(written)


def _known(conductor: Conductor, tenant: str, name: str) -> Session:
    key = SessionKey(tenant, conductor.root(tenant), name)
    session = conductor.keeper.registry.get(key)
    if session is None:
        raise UnknownAgent(name)
    return session


def _is_busy(conductor: Conductor, key: SessionKey) -> bool:
    """Whether a turn waits or runs that will replace the session."""
    requests = (turn.request for turn in conductor.planner.turns.values())
    return any(
        one.session == key
        or (one.root == key.root and one.identity.exclusive and one.identity.name == key.name)
        for one in requests
    )


def _write(conductor: Conductor, session: Session, done: Done) -> None:
    lineage = conductor.keeper.lineage
    path = lineage.path(session.cursor) if session.cursor else Match()
    conductor.keeper.write(path, session, done)


# -- rewinding -------------------------------------------------------------------------------


def _messages_before(session: Session, turns: int) -> int:
    """How many messages are left when the last `turns` turns are taken back."""
    starts = turn_starts(session.messages)
    if not 1 <= turns <= len(starts):
        problem = f"agent {session.name!r} has {len(starts)} turns to take back, not {turns}"
        raise InvalidRequest(problem, "turns")
    return starts[-turns]


def _count_spans(conductor: Conductor, session: Session, messages: tuple[Message, ...]) -> int:
    if not messages:
        return 0
    conversation = Conversation(messages, parsed_tools(session.tools))
    return conductor.builder.count_known(conversation, session.spans)


def _rewind(
    conductor: Conductor, session: Session, messages: int, spans: int, now: float, done: Done
) -> None:
    row = sum(len(span.ids) for span in session.spans[:spans])
    path = conductor.keeper.lineage.path(session.cursor) if session.cursor else Match()
    _write(conductor, rewound(session, messages, spans, stepped_back(path, row), now), done)


# -- looking ---------------------------------------------------------------------------------


def _views(conductor: Conductor, tenant: str, root: bytes) -> Iterator[AgentView]:
    sessions = [
        one for one in conductor.keeper.registry if (one.key.tenant, one.key.root) == (tenant, root)
    ]
    paths = {one.key: _path(conductor, one) for one in sessions}
    users = Counter(step.segment.key for path in paths.values() for step in path)
    for session in sessions:
        if not session.name.startswith(NAMELESS):
            yield _view(conductor, session, paths[session.key], users)


def _path(conductor: Conductor, session: Session) -> tuple[Step, ...]:
    """The segments that the session builds on; none if they leave at this very moment."""
    with suppress(KeyError):
        return conductor.keeper.lineage.path(session.cursor).steps if session.cursor else ()
    return ()


def _view(
    conductor: Conductor, session: Session, path: tuple[Step, ...], users: Mapping[bytes, int]
) -> AgentView:
    segments = [step.segment for step in path]
    return AgentView(
        name=session.name,
        tenant=session.key.tenant,
        model=conductor.engine.card.name,
        tokens=session.tokens,
        messages=len(session.messages),
        turns=len(turn_starts(session.messages)),
        pinned=session.pinned,
        expires=session.expires,
        parent=session.parent,
        created=session.created,
        used=session.used,
        tier=_tier(conductor, session, path),
        nbytes=sum(one.nbytes for one in segments),
        shared_bytes=sum(one.nbytes for one in segments if users[one.key] > 1),
        hits=session.usage.hits,
        prompt_tokens=session.usage.prompt,
        cached_tokens=session.usage.cached,
    )


def _tier(conductor: Conductor, session: Session, path: tuple[Step, ...]) -> Tier:
    if conductor.planner.hot.resting(session.key) is not None:
        return Tier.HOT
    if not path:
        return Tier.NONE
    lineage = conductor.keeper.lineage
    in_ram = all(lineage.resides(step.segment.key, Tier.WARM) for step in path)
    return Tier.WARM if in_ram else Tier.COLD
