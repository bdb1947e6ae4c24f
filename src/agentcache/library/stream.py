"""One answer on its way: a task hears the turn out, whoever listens, and however slowly."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from attrs import define, field

from agentcache.domain.errors import AgentCacheError, TurnCancelled, Unavailable
from agentcache.domain.events import Delta, Ended
from agentcache.library.answer import Answer
from agentcache.service import RunningTurn

_Begin = Callable[[], Awaitable[RunningTurn]]


@define(eq=False)
class _Hearing:
    """Hears one turn of an agent, after those before it (`order`)."""

    begin: _Begin
    order: asyncio.Lock
    pieces: "asyncio.Queue[str | None]" = field(factory=asyncio.Queue, init=False)
    answer: Answer | None = field(default=None, init=False)
    error: Exception | None = field(default=None, init=False)

    async def run(self) -> None:
        try:
            async with self.order:
                await self._hear(await self.begin())
        except asyncio.CancelledError:
            self.error = TurnCancelled()
        except Exception as error:
            self.error = error
        finally:
            self.pieces.put_nowait(None)

    async def _hear(self, turn: RunningTurn) -> None:
        said: list[str] = []
        try:
            async for event in turn:
                if isinstance(event, Delta) and event.text:
                    said.append(event.text)
                    self.pieces.put_nowait(event.text)
                elif isinstance(event, Ended):
                    self.answer = Answer.of("".join(said), turn.admitted, event)
        except Unavailable as error:
            if error.reason != "draining":
                raise
            raise TurnCancelled("cut off: the cache was closed") from None
        except asyncio.CancelledError:
            await turn.cancel()
            with suppress(AgentCacheError):
                async for _ in turn:  # until its place is free
                    pass
            raise


class AsyncStream:
    """The answer piece by piece, as it is said; `answer` at its end.

    The turn starts when the first piece is asked for, or at `async with`, and goes on by itself
    from there. Closing the stream before its end cancels the turn, which the agent then does not
    remember: `async with` closes it however the block is left.
    """

    def __init__(self, begin: _Begin, order: asyncio.Lock) -> None:
        self._hearing = _Hearing(begin, order)
        self._task: asyncio.Task[None] | None = None
        self._over = False

    @property
    def answer(self) -> Answer:
        """The whole answer. Raises what ended the turn, RuntimeError before its end."""
        if self._hearing.error is not None:
            raise self._hearing.error
        if self._hearing.answer is None:
            raise RuntimeError("the answer is not there yet: iterate over the stream to its end")
        return self._hearing.answer

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        if self._over:
            raise StopAsyncIteration
        self._start()
        piece = await self._hearing.pieces.get()
        if piece is not None:
            return piece
        self._over = True
        if self._hearing.error is not None:
            raise self._hearing.error
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        self._start()
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop the answer, if it is not over; returns when its place is free. Idempotent."""
        self._over = True
        if self._task is None:
            self._hearing.error = self._hearing.error or TurnCancelled()
        elif not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    def _start(self) -> None:
        if self._task is None and not self._over:
            self._task = asyncio.create_task(self._hearing.run())
            _unfinished.add(self._task)
            self._task.add_done_callback(_unfinished.discard)

    def __del__(self) -> None:
        task = getattr(self, "_task", None)
        if task is not None and not task.done():
            with suppress(RuntimeError):  # its event loop is closed
                task.get_loop().call_soon_threadsafe(task.cancel)


_unfinished: set[asyncio.Task[None]] = set()  # an event loop alone would let them be collected
