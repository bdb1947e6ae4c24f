"""The library for programs with an event loop."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Self, Unpack
from weakref import WeakValueDictionary

from attrs import define, evolve, field

from agentcache.agent_view import AgentView
from agentcache.domain.conversation import Conversation, Message
from agentcache.domain.errors import AgentBusy, InvalidRequest, UnknownAgent
from agentcache.domain.request import Identity
from agentcache.domain.session import DEFAULT_TENANT
from agentcache.library.answer import Answer, Options, ask_of
from agentcache.library.opening import Running
from agentcache.library.stream import AsyncStream
from agentcache.ports.engine import ModelCard
from agentcache.service import RunningTurn, Service
from agentcache.succession import check_name

_BUSY_SECONDS = 0.01  # between two looks whether a turn is over


@define(eq=False)
class AsyncAgentCache:
    """A model and its agents, for one event loop. Made by `agentcache.open_async`.

    After `close` everything but `close` raises Closed.
    """

    _running: Running
    _orders: "WeakValueDictionary[str, asyncio.Lock]" = field(
        factory=WeakValueDictionary, init=False
    )

    @property
    def service(self) -> Service:
        """What is below: turns and agents of every tenant."""
        return self._running.service

    @property
    def model(self) -> ModelCard:
        """The model that answers."""
        return self.service.model

    def agent(self, name: str, system: str | None = None, codec: str | None = None) -> "AsyncAgent":
        """The agent `name`, known or new; nothing happens before it is talked to.

        `system` is its system prompt; None: the one that it has. Another one than it has replaces
        that at the next turn, which then computes the conversation anew. So does another `codec`
        than its rows are kept with; None: the one that it has, at first that of the settings.
        Raises InvalidRequest for what can be no name, and for a codec that there is not.
        """
        check_name(name)
        if codec is not None:
            self.service.check_codec(codec)
        order = self._orders.setdefault(name, asyncio.Lock())
        return AsyncAgent(self, name, system, codec, order)

    def agents(self) -> tuple[AgentView, ...]:
        """All agents that the model has, by name."""
        return self.service.agents(DEFAULT_TENANT)

    async def close(self) -> None:
        """Cancel what runs, write what is left to be written, release the home. Idempotent."""
        await asyncio.shield(asyncio.to_thread(self._running.close))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.close()


@define(eq=False)
class AsyncAgent:
    """A handle on one agent. It holds nothing itself: all handles on an agent see the same memory.

    What is asked of one agent is done one after the other; different agents answer at once.
    """

    cache: AsyncAgentCache
    name: str
    system: str | None
    codec: str | None
    _order: asyncio.Lock = field(repr=False)

    @property
    def history(self) -> tuple[Message, ...]:
        """The conversation so far, the system prompt first; () for an agent that is new."""
        return self._remembered().messages

    @property
    def info(self) -> AgentView:
        """The agent in numbers. Raises UnknownAgent for one that is new."""
        return self.cache.service.agent(DEFAULT_TENANT, self.name)

    async def say(self, text: str, **options: Unpack[Options]) -> Answer:
        """Say something, and return the answer once it is kept.

        Raises InvalidRequest (PromptTooLong among them), Overloaded when no place became free in
        time, TurnFailed, Closed. Cancelling the call cancels the turn.
        """
        async with self.stream(text, **options) as stream:
            async for _ in stream:
                pass
        return stream.answer

    def stream(self, text: str, **options: Unpack[Options]) -> AsyncStream:
        """As `say`, but the answer comes piece by piece."""
        if not isinstance(text, str):
            raise TypeError(f"an agent is told text, not {type(text).__name__}")
        if not text:
            raise InvalidRequest("there is nothing to say: the text is empty", "text")
        return AsyncStream(partial(self._begin, (Message("user", text),), options), self._order)

    async def prefill(self) -> Answer:
        """Compute what is known so far, so that the next answer comes sooner; says nothing.

        Raises InvalidRequest for an agent that has neither history nor system prompt.
        """
        async with AsyncStream(
            partial(self._begin, (), Options(max_tokens=0)), self._order
        ) as stream:
            async for _ in stream:
                pass
        return stream.answer

    async def fork(self, name: str) -> "AsyncAgent":
        """A new agent that remembers all that this one does; no rows are copied.

        Raises UnknownAgent for an agent that is new, AgentExists, InvalidRequest.
        """
        await self.cache.service.fork(DEFAULT_TENANT, self.name, name)
        return self.cache.agent(name, self.system, self.codec)

    async def rewind(self, turns: int = 1) -> None:
        """Take the last `turns` turns back: what was said to the agent, and what it answered.

        Raises InvalidRequest unless there are so many, UnknownAgent.
        """
        await self._once_idle(lambda service: service.rewind(DEFAULT_TENANT, self.name, turns))

    async def pin(self, pinned: bool = True) -> None:
        """Keep the agent's memory from being evicted, or no longer. Raises UnknownAgent."""
        await self.cache.service.pin(DEFAULT_TENANT, self.name, pinned)

    async def expire(self, after: float | timedelta | None) -> None:
        """Have the agent forgotten in `after` seconds; None: never. Raises UnknownAgent."""
        if isinstance(after, timedelta):
            after = after.total_seconds()
        at = None if after is None else time.time() + after
        await self.cache.service.expire(DEFAULT_TENANT, self.name, at)

    async def delete(self) -> None:
        """Forget the agent, pinned or not; the handle may be used on. Raises UnknownAgent."""
        await self._once_idle(lambda service: service.forget(DEFAULT_TENANT, self.name))

    async def _once_idle(self, change: Callable[[Service], Awaitable[None]]) -> None:
        """Make a change after all turns that were asked for before it, cancelled ones too."""
        async with self._order:
            while True:
                with suppress(AgentBusy):
                    return await change(self.cache.service)
                await asyncio.sleep(_BUSY_SECONDS)

    def _remembered(self) -> Conversation:
        try:
            return self.cache.service.conversation(DEFAULT_TENANT, self.name)
        except UnknownAgent:
            return Conversation(())

    async def _begin(self, new: tuple[Message, ...], options: Options) -> RunningTurn:
        known = self._remembered()
        messages = (*_headed(known.messages, self.system), *new)
        if not messages:
            raise InvalidRequest(f"agent {self.name!r} has nothing to prefill yet", "text")
        identity = Identity(self.name, exclusive=True)
        asked = ask_of(identity, Conversation(messages, known.tools), options)
        return await self.cache.service.begin(evolve(asked, codec=self.codec))


def _headed(messages: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    """The conversation with `system` for its system prompt, unless that is None."""
    if system is None:
        return messages
    rest = messages[1:] if messages and messages[0].role in ("system", "developer") else messages
    return (Message("system", system), *rest) if system else rest


class AsyncOpening:
    """Await it, or enter it with `async with`, for an AsyncAgentCache."""

    def __init__(self, open_: "partial[Running]") -> None:
        self._open = open_
        self._opened: AsyncAgentCache | None = None

    def __await__(self) -> Generator[object, None, AsyncAgentCache]:
        return self._opening().__await__()

    async def __aenter__(self) -> AsyncAgentCache:
        self._opened = await self
        return self._opened

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        assert self._opened is not None
        await self._opened.close()

    async def _opening(self) -> AsyncAgentCache:
        opening = asyncio.ensure_future(asyncio.to_thread(self._open))
        try:
            return AsyncAgentCache(await asyncio.shield(opening))
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unwanted)
            raise


def _close_unwanted(opening: "asyncio.Future[Running]") -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.get_loop().run_in_executor(None, opening.result().close)
