"""The library for programs without an event loop, or with one that they do not want to await on.

Everything runs on an event loop in a thread of its own, so calls may come from any thread, also
from inside a running event loop, which a call blocks until it returns.
"""

import asyncio
import atexit
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import wait
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack
from weakref import WeakMethod

from attrs import define, field

from agentcache.agent_view import AgentView
from agentcache.domain.conversation import Message
from agentcache.domain.errors import Closed
from agentcache.library.answer import Answer, Options
from agentcache.library.asynchronous import AsyncAgent, AsyncAgentCache
from agentcache.library.opening import Running
from agentcache.library.stream import AsyncStream
from agentcache.ports.engine import ModelCard
from agentcache.service import Service

T = TypeVar("T")

# A signal that comes just before the thread blocks is seen only when it wakes: that is how often.
_SIGNAL_SECONDS = 0.2


@define(eq=False)
class _LoopThread:
    """An event loop in a thread of its own."""

    _loop: asyncio.AbstractEventLoop = field(factory=asyncio.new_event_loop, init=False)
    _thread: threading.Thread = field(init=False)

    @_thread.default
    def _started(self) -> threading.Thread:
        thread = threading.Thread(
            target=self._loop.run_forever, name="agentcache-library", daemon=True
        )
        thread.start()
        return thread

    def run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What the coroutine returns. An interrupted call (Ctrl-C) cancels it."""
        if self._loop.is_closed():
            raise Closed()
        future = asyncio.run_coroutine_threadsafe(make(), self._loop)
        try:
            while not future.done():
                wait((future,), timeout=_SIGNAL_SECONDS)
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the thread once the tasks that are left have ended."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(_finish(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _finish() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()


class AgentCache:
    """A model and its agents. Made by `agentcache.open`; a context manager that closes it.

    After `close` everything but `close` raises Closed.
    """

    def __init__(self, running: Running) -> None:
        self._async = AsyncAgentCache(running)
        self._thread = _LoopThread()
        self._closing = threading.Lock()
        self._at_exit = _closer(WeakMethod(self.close))
        atexit.register(self._at_exit)

    @property
    def service(self) -> Service:
        """What is below: turns and agents of every tenant, for use from an event loop."""
        return self._async.service

    @property
    def model(self) -> ModelCard:
        """The model that answers."""
        return self._async.model

    def agent(self, name: str, system: str | None = None, codec: str | None = None) -> "Agent":
        """The agent `name`, known or new; nothing happens before it is talked to.

        `system` is its system prompt; None: the one that it has. Another one than it has replaces
        that at the next turn, which then computes the conversation anew. So does another `codec`
        than its rows are kept with; None: the one that it has, at first that of the settings.
        Raises InvalidRequest for what can be no name, and for a codec that there is not.
        """
        return Agent(self, self._async.agent(name, system, codec))

    def agents(self) -> tuple[AgentView, ...]:
        """All agents that the model has, by name."""
        return self._async.agents()

    def close(self) -> None:
        """Cancel what runs, write what is left to be written, release the home. Idempotent."""
        with self._closing:
            atexit.unregister(self._at_exit)
            self._async._running.close()
            self._thread.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()


def _closer(close: "WeakMethod[Callable[[], None]]") -> Callable[[], None]:
    def close_at_exit() -> None:
        if (still := close()) is not None:
            still()

    return close_at_exit


class Agent:
    """A handle on one agent. It holds nothing itself: all handles on an agent see the same memory.

    What is asked of one agent is done one after the other; different agents answer at once. Every
    method raises Closed after the cache was closed.

    >>> with agentcache.open() as cache:
    ...     ada = cache.agent("ada", system="You are brief.")
    ...     _ = ada.say("Hello!", max_tokens=4)
    ...     eve = ada.fork("eve")
    ...     _ = eve.say("And now?", max_tokens=4)
    ...     eve.rewind(2)
    ...     eve.pin()
    ...     [(one.name, one.turns, one.pinned) for one in cache.agents()]
    [('ada', 1, False), ('eve', 0, True)]
    """

    def __init__(self, cache: AgentCache, agent: AsyncAgent) -> None:
        self.cache = cache
        self._agent = agent
        self._run = cache._thread.run

    def __repr__(self) -> str:
        return f"Agent({self.name!r})"

    @property
    def name(self) -> str:
        """What it is called."""
        return self._agent.name

    @property
    def system(self) -> str | None:
        """The system prompt of this handle."""
        return self._agent.system

    @property
    def codec(self) -> str | None:
        """What this handle has the agent's rows kept with; None: with what they are."""
        return self._agent.codec

    @property
    def history(self) -> tuple[Message, ...]:
        """The conversation so far, the system prompt first; () for an agent that is new."""
        return self._agent.history

    @property
    def info(self) -> AgentView:
        """The agent in numbers. Raises UnknownAgent for one that is new."""
        return self._agent.info

    def say(self, text: str, **options: Unpack[Options]) -> Answer:
        """Say something, and return the answer once it is kept.

        Raises InvalidRequest (PromptTooLong among them), Overloaded when no place became free in
        time, TurnFailed. Ctrl-C cancels the turn.
        """
        return self._run(lambda: self._agent.say(text, **options))

    def stream(self, text: str, **options: Unpack[Options]) -> "Stream":
        """As `say`, but the answer comes piece by piece."""
        return Stream(self._agent.stream(text, **options), self.cache._thread)

    def prefill(self) -> Answer:
        """Compute what is known so far, so that the next answer comes sooner; says nothing.

        Raises InvalidRequest for an agent that has neither history nor system prompt.
        """
        return self._run(self._agent.prefill)

    def fork(self, name: str) -> "Agent":
        """A new agent that remembers all that this one does; no rows are copied.

        Raises UnknownAgent for an agent that is new, AgentExists, InvalidRequest.
        """
        return Agent(self.cache, self._run(lambda: self._agent.fork(name)))

    def rewind(self, turns: int = 1) -> None:
        """Take the last `turns` turns back: what was said to the agent, and what it answered.

        Raises InvalidRequest unless there are so many, UnknownAgent.
        """
        self._run(lambda: self._agent.rewind(turns))

    def pin(self, pinned: bool = True) -> None:
        """Keep the agent's memory from being evicted, or no longer. Raises UnknownAgent."""
        self._run(lambda: self._agent.pin(pinned))

    def expire(self, after: float | timedelta | None) -> None:
        """Have the agent forgotten in `after` seconds; None: never. Raises UnknownAgent."""
        self._run(lambda: self._agent.expire(after))

    def delete(self) -> None:
        """Forget the agent, pinned or not; the handle may be used on. Raises UnknownAgent."""
        self._run(self._agent.delete)


class Stream:
    """The answer piece by piece, as it is said; `answer` at its end.

    The turn starts when the first piece is asked for, or at `with`, and goes on by itself from
    there. Closing the stream before its end cancels the turn, which the agent then does not
    remember: `with` closes it however the block is left.

    >>> with agentcache.open() as cache:
    ...     with cache.agent("ada").stream("Hello!", max_tokens=4) as stream:
    ...         pieces = list(stream)
    >>> stream.answer.text == "".join(pieces)
    True
    """

    def __init__(self, stream: AsyncStream, thread: _LoopThread) -> None:
        self._stream = stream
        self._run = thread.run

    @property
    def answer(self) -> Answer:
        """The whole answer. Raises what ended the turn, RuntimeError before its end."""
        return self._stream.answer

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        try:
            piece = self._run(self._next)
        except KeyboardInterrupt:
            self.close()
            raise
        if piece is None:
            raise StopIteration
        return piece

    def __enter__(self) -> Self:
        self._run(self._stream.__aenter__)
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the answer, if it is not over; returns when its place is free. Idempotent."""
        try:
            self._run(self._stream.aclose)
        except Closed:  # it has ended with the cache
            return

    async def _next(self) -> str | None:
        return await anext(self._stream, None)
