"""Events on their way from the engine thread to whoever awaits them on an event loop."""

import asyncio
import math
from collections import deque
from typing import Generic, TypeVar

from attrs import define, field

T = TypeVar("T")


@define(eq=False)
class Bell:
    """Wakes one event loop for what other threads put into its inboxes, once for all of it."""

    loop: asyncio.AbstractEventLoop
    _new: "deque[tuple[Inbox[object], object]]" = field(factory=deque, init=False)
    _rung: bool = field(default=False, init=False)

    def put(self, inbox: "Inbox[T]", item: T) -> None:
        """Have `item` in `inbox` soon; from any thread. Once the loop is closed it is lost."""
        self._new.append((inbox, item))  # type: ignore[arg-type]
        if not self._rung:
            self._rung = True
            try:
                self.loop.call_soon_threadsafe(self._hand_out)
            except RuntimeError:  # the event loop is closed: nobody listens any more
                self._new.clear()

    def _hand_out(self) -> None:
        self._rung = False  # before it looks, so that nothing is put in between unheard
        while self._new:
            inbox, item = self._new.popleft()
            inbox.put(item)


@define(eq=False)
class Inbox(Generic[T]):
    """What came for one listener, in order. For use on its event loop, by one task at a time."""

    _items: "deque[T]" = field(factory=deque, init=False)
    _waiter: "asyncio.Future[None] | None" = field(default=None, init=False)
    _alarm: asyncio.TimerHandle | None = field(default=None, init=False)
    _due: float = field(default=math.inf, init=False)

    def put(self, item: T) -> None:
        """One more, for whoever waits."""
        self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self, within: float = math.inf) -> T | None:
        """The next one; None when none has come `within` seconds."""
        if not self._items:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            self._due = loop.time() + within
            if self._alarm is None or self._alarm.when() > self._due:
                self._set_alarm(loop)
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._items.popleft() if self._items else None

    def close(self) -> None:
        """Nobody waits for now: no alarm is needed."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _set_alarm(self, loop: asyncio.AbstractEventLoop) -> None:
        self.close()
        if self._due < math.inf:
            self._alarm = loop.call_at(self._due, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        """One alarm outlasts many waits: it goes on to where the present one is due."""
        self._alarm = None
        if self._waiter is None:
            return
        if self._due > loop.time():
            self._set_alarm(loop)
        elif not self._waiter.done():
            self._waiter.set_result(None)
