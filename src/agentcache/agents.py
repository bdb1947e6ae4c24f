"""What can be done with agents apart from talking to them: look, fork, rewind, pin, forget.

Looking reads what the engine thread owns as it is at the moment, from any thread. Changing is done
on the engine thread, and has been committed when the call returns; where the home cannot be written
(see readiness), the change holds in memory, and is written as soon as something can be.
"""

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import Future

from attrs import define, evolve

from agentcache.agent_view import AgentView, StoredAnswer, views
from agentcache.conductor import Conductor
from agentcache.domain.conversation import Conversation, Message, turn_starts
from agentcache.domain.errors import (
    AgentBusy,
    AgentExists,
    InvalidRequest,
    UnknownAgent,
    UnknownAnswer,
)
from agentcache.domain.path import Match
from agentcache.domain.session import Session
from agentcache.domain.tools import parsed_tools
from agentcache.loop import EngineLoop
from agentcache.outbox import Done
from agentcache.ports.clock import Clock
from agentcache.succession import NAMELESS, check_name, forked, rewound, stepped_back

_Change = Callable[[Conductor, Done], None]


@define(eq=False)
class Agents:
    """The agents of the model that is served. For use from one event loop.

    A turn that runs on an agent would undo its rewinding and forgetting: these are refused with
    AgentBusy meanwhile. A fork copies what was committed last.
    """

    _loop: EngineLoop
    _clock: Clock

    # -- looking -----------------------------------------------------------------------------

    def agents(self, tenant: str, nameless: bool = False) -> tuple[AgentView, ...]:
        """Those of this tenant that have a name, by name, or all. Raises Unavailable."""
        found = views(self._loop.conductor, tenant, nameless)
        return tuple(sorted(found, key=lambda view: view.name))

    def agent(self, tenant: str, name: str) -> AgentView:
        """One agent. Raises UnknownAgent, Unavailable."""
        for view in views(self._loop.conductor, tenant):
            if view.name == name:
                return view
        raise UnknownAgent(name)

    def history(self, tenant: str, name: str) -> tuple[Message, ...]:
        """The conversation as it was told. Raises UnknownAgent, Unavailable."""
        return self._session(tenant, name).messages

    def conversation(self, tenant: str, name: str) -> Conversation:
        """The conversation with its tools. Raises UnknownAgent, Unavailable."""
        session = self._session(tenant, name)
        return Conversation(session.messages, parsed_tools(session.tools))

    def answer(self, tenant: str, turn: str) -> StoredAnswer:
        """The answer of `turn`. Raises UnknownAnswer, Unavailable."""
        session, at = self._answered(tenant, turn)
        return StoredAnswer(session.messages[: at + 1], session.created)

    # -- changing ----------------------------------------------------------------------------

    async def fork(self, tenant: str, name: str, new: str) -> None:
        """Let `new` remember all that `name` does. Copies no rows, whatever the length.

        Raises UnknownAgent, AgentExists, InvalidRequest for a name that cannot be one, Unavailable.
        """
        check_name(new)

        def change(conductor: Conductor, done: Done) -> None:
            session = _known(conductor, tenant, name)
            if _all_known(conductor, tenant, new) or _is_busy(conductor, tenant, new):
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
            if _is_busy(conductor, tenant, name) or now.generation != session.generation:
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
            found = _all_known(conductor, tenant, name)
            if not found:
                raise UnknownAgent(name)
            if _is_busy(conductor, tenant, name):
                raise AgentBusy(name)
            for session in found[1:]:  # what it may have left behind under other codecs
                _forget(conductor, session, lambda _durable: None)
            _forget(conductor, found[0], done)

        await self._committed(change)

    async def forget_answer(self, tenant: str, turn: str) -> None:
        """Let the answer of `turn` be found no more; conversations that end with it are deleted,
        unless they are a named agent's. Raises UnknownAnswer, AgentBusy, Unavailable.
        """
        self._answered(tenant, turn)

        def change(conductor: Conductor, done: Done) -> None:
            first, *others = _with_answer(conductor, tenant, turn)
            for session in (first, *others):
                if _is_busy(conductor, tenant, session.name):
                    raise AgentBusy(session.name)
            for session in others:  # changes are made in order: the last one ends all of them
                _without_answer(conductor, session, turn, lambda _durable: None)
            _without_answer(conductor, first, turn, done)

        await self._committed(change)

    # -- inside ------------------------------------------------------------------------------

    def _session(self, tenant: str, name: str) -> Session:
        return _known(self._loop.conductor, tenant, name)

    def _answered(self, tenant: str, turn: str) -> tuple[Session, int]:
        conductor = self._loop.conductor
        session = _with_answer(conductor, tenant, turn)[0]
        return session, [one.turn for one in session.messages].index(turn)

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
    roots = conductor.roots.of(tenant)
    session = conductor.keeper.registry.named(tenant, roots, name)
    if session is None:
        raise UnknownAgent(name)
    return session


def _all_known(conductor: Conductor, tenant: str, name: str) -> tuple[Session, ...]:
    return conductor.keeper.registry.all_named(tenant, conductor.roots.of(tenant), name)


def _with_answer(conductor: Conductor, tenant: str, turn: str) -> tuple[Session, ...]:
    """Those that have it, one at least, the last one used first."""
    found = conductor.keeper.registry.answered(tenant, conductor.roots.of(tenant), turn)
    if not found:
        raise UnknownAnswer(turn)
    return found


def _without_answer(conductor: Conductor, session: Session, turn: str, done: Done) -> None:
    if session.messages[-1].turn == turn and session.name.startswith(NAMELESS):
        _forget(conductor, session, done)
    else:
        messages = (one.unfindable() if one.turn == turn else one for one in session.messages)
        _write(conductor, evolve(session, messages=tuple(messages)), done)


def _is_busy(conductor: Conductor, tenant: str, name: str) -> bool:
    """Whether a turn waits or runs that will replace the session of this name."""
    requests = (turn.request for turn in conductor.planner.turns.values())
    whose = (one for one in requests if one.identity.tenant == tenant)
    return any(
        (one.session is not None and one.session.name == name)
        or (one.identity.exclusive and one.identity.name == name)
        for one in whose
    )


def _forget(conductor: Conductor, session: Session, done: Done) -> None:
    if (resting := conductor.planner.hot.resting(session.key)) is not None:
        conductor.planner.hot.drop(resting)
    conductor.keeper.forget(session.key, done)


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
