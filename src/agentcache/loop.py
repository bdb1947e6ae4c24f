"""The engine thread: everything that comes in is a call in its inbox; the rest is the conductor's.

This thread alone touches the engine, the planner, the lineage and the registry; it makes the engine
and closes it.
"""

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

from attrs import define, field

from agentcache import native_end
from agentcache.conductor import Conductor
from agentcache.domain.errors import AgentCacheError, Unavailable
from agentcache.domain.request import TurnRequest
from agentcache.keeper import Post
from agentcache.ports.clock import Clock
from agentcache.ports.telemetry import Telemetry
from agentcache.speech import Emit

T = TypeVar("T")
log = logging.getLogger(__name__)
GAUGE_SECONDS = 1.0

Assemble = Callable[[Post], Conductor]


@define(eq=False)
class EngineLoop:
    """Runs a conductor, which `assemble` makes on the loop's own thread, given the loop's `post`.

    `phase` is starting, serving, draining, stopped or failed. `beat` is when the last round was
    done. With `debug`, every invariant is checked whenever there is nothing to do. Methods may be
    called from any thread; what they are given to call back is called on the loop's.
    """

    assemble: Assemble
    clock: Clock
    telemetry: Telemetry
    debug: bool = False
    phase: str = field(default="starting", init=False)
    beat: float = field(default=0.0, init=False)
    problem: BaseException | None = field(default=None, init=False)
    _conductor: Conductor | None = field(default=None, init=False)
    _inbox: "queue.SimpleQueue[Callable[[], None]]" = field(factory=queue.SimpleQueue, init=False)
    _opened: threading.Event = field(factory=threading.Event, init=False)
    _over: threading.Event = field(factory=threading.Event, init=False)
    _stop_at: float | None = field(default=None, init=False)
    _gauged: float = field(default=0.0, init=False)
    _thread: threading.Thread = field(init=False)

    @_thread.default
    def _not_started(self) -> threading.Thread:
        return threading.Thread(target=self._run, name="agentcache-engine", daemon=True)

    @property
    def conductor(self) -> Conductor:
        """What the loop runs. Raises Unavailable before it is open and after it has failed."""
        if self._conductor is None:
            raise Unavailable(self.phase)
        return self._conductor

    # -- from any thread ---------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wait_open(self) -> None:
        """Wait until the loop serves; raises what kept it from opening."""
        self._opened.wait()
        if self.problem is not None:
            raise self.problem

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def post(self, call: Callable[[], None]) -> None:
        """Have `call` called on the engine thread, soon."""
        self._inbox.put(call)
        if self._over.is_set():  # nobody is left to take it
            self._take_last_calls()

    def ask(self, call: Callable[[Conductor], T]) -> "Future[T]":
        """Have `call` called with the conductor on the engine thread; the future has its answer."""
        answer: Future[T] = Future()

        def run() -> None:
            if not answer.set_running_or_notify_cancel():
                return
            try:
                answer.set_result(call(self.conductor))
            except BaseException as error:
                answer.set_exception(error)

        self.post(run)
        return answer

    def submit(self, request: TurnRequest, emit: Emit) -> "Future[int]":
        """Queue a turn. The future holds its number, or why it was refused at once."""
        return self.ask(lambda conductor: self._enqueue(conductor, request, emit))

    def cancel(self, number: int) -> None:
        """Stop the turn of this number, wherever it is."""
        self.ask(lambda conductor: conductor.planner.cancel(number))

    def stop(self, within: float) -> None:
        """Take no more turns; let those that run finish `within` seconds, cancel them then."""
        until = self.clock.monotonic() + within
        self.post(lambda: self._drain(until))

    def join(self) -> None:
        """Wait until everything is committed and the thread has ended."""
        native_end.join(self._thread)

    # -- on the engine thread ----------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._conductor = self.assemble(self.post)
            self.phase = "serving"
            self._opened.set()
            self._serve(self._conductor)
            self.phase = "stopped"
        except BaseException as error:
            if self._conductor is not None or not isinstance(error, AgentCacheError):
                log.exception("the engine thread ends")  # why it did not open is told by wait_open
            self.problem, self.phase = error, "failed"
            if self._conductor is not None:
                self._conductor.fail_all(Unavailable("failed"))
        finally:
            self._opened.set()
            self._close()

    def _serve(self, conductor: Conductor) -> None:
        busy = True
        while not (self._stop_at is not None and conductor.is_idle and self._inbox.empty()):
            self._take_calls(None if busy else self._patience(conductor))
            busy = conductor.round()
            now = self.beat = self.clock.monotonic()
            if self._stop_at is not None and now >= self._stop_at:
                conductor.cancel_all()
            if self.debug and not busy:
                conductor.check_integrity()
            if not busy or now - self._gauged >= GAUGE_SECONDS:
                self._gauged = now
                self.telemetry.gauges(conductor.levels())

    def _take_calls(self, patience: float | None) -> None:
        """Run what is in the inbox; with `patience`, wait so many seconds for something to come."""
        try:
            call = self._inbox.get(timeout=patience) if patience else self._inbox.get_nowait()
            while True:
                call()
                call = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _patience(self, conductor: Conductor) -> float:
        moments = [conductor.planner.next_deadline(), self._stop_at]
        now = self.clock.monotonic()
        return min([1.0, *(max(0.001, one - now) for one in moments if one is not None)])

    def _enqueue(self, conductor: Conductor, request: TurnRequest, emit: Emit) -> int:
        if self._stop_at is not None:
            raise Unavailable("draining")
        return conductor.enqueue(request, emit)

    def _drain(self, until: float) -> None:
        self._stop_at = until
        if self._conductor is not None:
            self.phase = "draining"
            self._conductor.planner.refuse_waiting(Unavailable("draining"))

    def _close(self) -> None:
        conductor, self._conductor = self._conductor, None
        try:
            if conductor is not None:
                conductor.close()
        finally:
            self._take_last_calls()
            self._over.set()
            self._take_last_calls()

    def _take_last_calls(self) -> None:
        """Whoever still waits for an answer gets one, which is that there is nobody to ask."""
        with suppress(queue.Empty):
            while True:
                call = self._inbox.get_nowait()
                try:
                    call()
                except Exception:
                    log.exception("a call came too late")
