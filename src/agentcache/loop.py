"""The engine thread: everything that comes in is a call in its inbox; the rest is the conductor's.

This thread alone touches the engine, the planner, the lineage and the registry; it makes the engine
and closes it, also when one model takes the place of another.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import TypeVar

from attrs import define, field, frozen

from agentcache import native_end
from agentcache.conductor import Conductor
from agentcache.domain.errors import AgentCacheError, Unavailable
from agentcache.domain.planner import CLIENT_LEFT
from agentcache.domain.request import TurnRequest
from agentcache.ports.clock import Clock
from agentcache.ports.engine import ModelCard
from agentcache.ports.telemetry import Telemetry
from agentcache.resident import Assemble, Resident
from agentcache.speech import Emit

T = TypeVar("T")
log = logging.getLogger(__name__)
GAUGE_SECONDS = 1.0
STALLED_SECONDS = 120.0
_OVER = ("stopped", "failed")


@frozen
class Ticket:
    """What a turn is cancelled by: its number, and which of the models served so far it is with."""

    model: int
    number: int


@frozen(eq=False)
class _Swap:
    assemble: Assemble
    began: float
    until: float
    answer: "Future[ModelCard]"


@define(eq=False)
class EngineLoop:
    """Runs conductors, of which `assemble` makes the first, on the loop's own thread.

    `phase` is starting, serving, swapping, draining, stopped or failed. `opened` is done when it
    serves, or holds what kept it from that. `beat` is when the last round was done; `is_loading`
    while a model is loaded, which nothing can hurry. With `debug`, every invariant is checked
    whenever there is nothing to do. Methods may be called from any thread; what they are given to
    call back is called on the loop's.
    """

    assemble: Assemble
    clock: Clock
    telemetry: Telemetry
    debug: bool = False
    phase: str = field(default="starting", init=False)
    beat: float = field(default=0.0, init=False)
    is_loading: bool = field(default=False, init=False)
    problem: BaseException | None = field(default=None, init=False)
    _resident: Resident = field(init=False)
    _inbox: "queue.SimpleQueue[Callable[[], None]]" = field(factory=queue.SimpleQueue, init=False)
    opened: "Future[None]" = field(factory=Future, init=False)
    _over: threading.Event = field(factory=threading.Event, init=False)
    _stop_at: float | None = field(default=None, init=False)
    _swap: _Swap | None = field(default=None, init=False)
    _gauged: float = field(default=0.0, init=False)
    _thread: threading.Thread = field(init=False)

    @_resident.default
    def _nothing_loaded(self) -> Resident:
        return Resident(self.clock, self.post)

    @_thread.default
    def _not_started(self) -> threading.Thread:
        return threading.Thread(target=self._run, name="agentcache-engine", daemon=True)

    @property
    def conductor(self) -> Conductor:
        """What the loop runs. Raises Unavailable where there is none: see `phase`."""
        conductor = self._resident.conductor
        if conductor is None:
            raise Unavailable(self.phase, self._resident.load_seconds if self.is_loading else 1.0)
        return conductor

    @property
    def silence(self) -> float:
        """Seconds since the last round was done; 0 before the first, while a model is loaded, and
        when there are no more.
        """
        if not self.beat or self.is_loading or self.phase in _OVER:
            return 0.0
        return self.clock.monotonic() - self.beat

    @property
    def is_stalled(self) -> bool:
        """Whether the thread stands still: the engine does not come back from a step."""
        return self.silence > STALLED_SECONDS

    # -- from any thread ---------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wait_open(self) -> None:
        """Wait until the loop serves; raises what kept it from opening."""
        self.opened.result()
        if self.problem is not None:
            raise self.problem

    def wait_over(self, seconds: float) -> bool:
        """Wait for the end of everything, at most so long; whether it has come."""
        return self._over.wait(seconds)

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

    def submit(self, request: TurnRequest, emit: Emit) -> "Future[Ticket]":
        """Queue a turn. The future holds its ticket, or why it was refused at once."""
        return self.ask(lambda conductor: self._enqueue(conductor, request, emit))

    def cancel(self, ticket: Ticket, why: AgentCacheError = CLIENT_LEFT) -> None:
        """Stop the turn of this ticket, wherever it is, because of `why`."""
        self.ask(lambda conductor: self._cancel(conductor, ticket, why))

    def swap(self, assemble: Assemble, within: float) -> "Future[ModelCard]":
        """Let another model take the place of the one that is served.

        New turns are refused meanwhile; those that run finish `within` seconds, or are cut off then
        and told so. When everything is kept, the old model is dropped and the new one loaded; if
        that fails, the future holds why, and the old one is loaded again. Unavailable when there is
        a swap already, or an end.
        """
        now = self.clock.monotonic()
        swap = _Swap(assemble, now, now + within, Future())
        self.post(lambda: self._begin(swap))
        return swap.answer

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
            with self._loading():
                self._resident.load(self.assemble)
            self.opened.set_result(None)
            self._serve()
            self.phase = "stopped"
        except BaseException as error:
            if self._resident.number or not isinstance(error, AgentCacheError):
                log.exception("the engine thread ends")  # why it did not open is told by wait_open
            self.problem, self.phase = error, "failed"
            if self._resident.conductor is not None:
                self._resident.conductor.speeches.fail_all(Unavailable("failed"))
            if not self.opened.done():
                self.opened.set_exception(error)
        finally:
            self._close()

    def _serve(self) -> None:
        busy = True
        while not (self._stop_at is not None and self._is_over()):
            if not (busy and self._inbox.empty()):
                self._take_calls(None if busy else self._patience(self.conductor))
            busy = self.conductor.round()
            now = self.beat = self.clock.monotonic()
            if not busy or now - self._gauged >= GAUGE_SECONDS:
                self._look(now, busy)
            if self._stop_at is not None or self._swap is not None:
                self._come_to_an_end(now)

    def _look(self, now: float, busy: bool) -> None:
        """Tell how things are; in debug mode, whether they are as they must be."""
        if self.debug and not busy:
            self.conductor.check_integrity()
        self._gauged = now
        self.telemetry.gauges(self.conductor.levels())

    def _come_to_an_end(self, now: float) -> None:
        """Cut off what runs for too long, and go on to another model once nothing runs."""
        if (until := self._until()) is not None and now >= until:
            self.conductor.cut_all(self._closed_because() or Unavailable("draining"))
        if self._swap is not None and self.conductor.is_idle:
            self._exchange(self._swap)  # nothing here may hold the model that it drops

    def _is_over(self) -> bool:
        return self.conductor.is_idle and self._inbox.empty()

    def _until(self) -> float | None:
        """When the running turns are cut off."""
        if self._stop_at is None and self._swap is None:
            return None
        moments = [self._stop_at, self._swap.until if self._swap else None]
        return min((one for one in moments if one is not None), default=None)

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
        moments = [conductor.planner.next_deadline(), self._until()]
        now = self.clock.monotonic()
        return min([1.0, *(max(0.001, one - now) for one in moments if one is not None)])

    def _enqueue(self, conductor: Conductor, request: TurnRequest, emit: Emit) -> Ticket:
        self._check_open()
        return Ticket(self._resident.number, conductor.enqueue(request, emit))

    def _check_open(self) -> None:
        if (why := self._closed_because()) is not None:
            raise why

    def _closed_because(self) -> Unavailable | None:
        """Why no turns are taken at the moment."""
        if self._stop_at is not None:
            return Unavailable("draining")
        if self._swap is not None:
            return Unavailable("swapping", self._resident.load_seconds)
        return None

    def _cancel(self, conductor: Conductor, ticket: Ticket, why: AgentCacheError) -> None:
        if ticket.model == self._resident.number:
            conductor.planner.cancel(ticket.number, why)

    def _drain(self, until: float) -> None:
        self._stop_at = until
        conductor = self._resident.conductor
        if conductor is not None:
            self.phase = "draining"
            conductor.planner.refuse_waiting(Unavailable("draining"))
            conductor.compactor.rest()
        self._end_swap(Unavailable("draining"))

    # -- another model -----------------------------------------------------------------------

    def _begin(self, swap: _Swap) -> None:
        if not swap.answer.set_running_or_notify_cancel():
            return
        try:
            waiting = self.conductor.planner
            self._check_open()
        except Unavailable as error:
            swap.answer.set_exception(error)
            return
        self._swap, self.phase = swap, "swapping"
        waiting.refuse_waiting(Unavailable("swapping", self._resident.load_seconds))
        self.conductor.compactor.rest()

    def _end_swap(self, problem: Exception | None) -> None:
        swap, self._swap = self._swap, None
        if swap is None:
            return
        outcome = "failed" if self._stop_at is None else "interrupted"
        outcome = "done" if problem is None else outcome
        self.telemetry.swapped(outcome, self.clock.monotonic() - swap.began)
        if problem is not None:
            swap.answer.set_exception(problem)
        else:
            swap.answer.set_result(self.conductor.engine.card)

    def _exchange(self, swap: _Swap) -> None:
        with self._loading():
            problem = self._resident.exchange(swap.assemble)
        self._end_swap(problem)

    @contextmanager
    def _loading(self) -> Iterator[None]:
        self.is_loading = True
        try:
            yield
            self.phase = "serving" if self._stop_at is None else "draining"
        finally:
            if self.beat:  # before anybody thinks that the thread was silent for so long
                self.beat = self.clock.monotonic()
            self.is_loading = False

    def _close(self) -> None:
        self._end_swap(Unavailable(self.phase))
        try:
            self._resident.close()
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
