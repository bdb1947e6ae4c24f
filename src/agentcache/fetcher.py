"""The reader threads: rows from RAM or disk, verified and decoded straight into place."""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from attrs import define, evolve, field, frozen

from agentcache.domain.path import Step
from agentcache.domain.segment import Segment
from agentcache.domain.spec import CacheSpec
from agentcache.ports.codec import Codec
from agentcache.ports.payload import Payload
from agentcache.ports.rows import RowArray, Rows
from agentcache.ports.segment_store import SegmentStore

DECODE_ROWS = 256  # few enough for several threads to be done at about the same time


@frozen(eq=False)
class Fetched:
    """What came of a fetch: payloads that were read from disk, and what could not be used.

    A segment that could not be used is told once, with the first problem that was found with it.
    """

    read: tuple[tuple[Segment, Payload], ...] = ()
    failed: tuple[tuple[Segment, Exception], ...] = ()


@define(eq=False)
class _Gathering:
    """One fetch under way: how many parts are still to be done, and what was found so far."""

    codec: Codec
    done: Callable[[Fetched], None]
    open: int
    read: list[tuple[Segment, Payload]] = field(factory=list)
    failed: dict[bytes, tuple[Segment, Exception]] = field(factory=dict)
    lock: threading.Lock = field(factory=threading.Lock)

    def more(self, parts: int) -> None:
        with self.lock:
            self.open += parts

    def finish_part(self) -> None:
        with self.lock:
            self.open -= 1
            last = not self.open
        if last:
            self.done(Fetched(tuple(self.read), tuple(self.failed.values())))


def _threads() -> int:
    return max(2, min(8, os.cpu_count() or 2))


@define(eq=False)
class Fetcher:
    """Restores paths of segments: every segment, and every DECODE_ROWS of it, a task of its own."""

    spec: CacheSpec
    store: SegmentStore
    threads: int = field(factory=_threads)
    _pool: ThreadPoolExecutor = field(init=False)

    @_pool.default
    def _new_pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads, thread_name_prefix="agentcache-reader")

    def fetch(
        self,
        codec: Codec,
        steps: tuple[Step, ...],
        warm: Mapping[bytes, Payload],
        out: Rows,
        done: Callable[[Fetched], None],
    ) -> None:
        """Decode all `steps` into `out`; `done` is called once at the end, on a reader thread.

        `codec` is that of their root: a payload of another one cannot be used. Those that are not
        in `warm` are read. Every step is tried, whatever comes of the others.
        """
        job = _Gathering(codec, done, len(steps))
        for step in steps:
            self._pool.submit(self._load, job, step, warm.get(step.segment.key), out)

    def join(
        self,
        codec: Codec,
        parts: tuple[Step, ...],
        warm: Mapping[bytes, Payload],
        done: Callable[[Payload | Exception], None],
    ) -> None:
        """Put encoded neighbours together; `done` is told the payload, or why there is none.

        Payloads that are not in `warm` are read.
        """
        found = [(step, warm.get(step.segment.key)) for step in parts]

        def work() -> None:
            try:
                answer: Payload | Exception = self._joined(codec, found)
            except Exception as error:
                answer = error
            done(answer)

        self._pool.submit(work)

    def close(self) -> None:
        """Finish what is under way and end the threads."""
        self._pool.shutdown()

    def _joined(self, codec: Codec, found: Sequence[tuple[Step, Payload | None]]) -> Payload:
        parts = [
            (payload or self.store.read(step.segment), step.stop - step.segment.start)
            for step, payload in found
        ]
        return codec.join(self.spec, parts)

    def _load(self, job: _Gathering, step: Step, payload: Payload | None, out: Rows) -> None:
        try:
            if payload is None:
                payload = self.store.read(step.segment)
                job.read.append((step.segment, payload))
        except Exception as error:
            job.failed[step.segment.key] = step.segment, error
            job.finish_part()
            return
        starts = range(step.segment.start, step.stop, DECODE_ROWS)
        job.more(len(starts) - 1)
        for start in starts[1:]:
            self._pool.submit(self._decode, job, step, payload, out, start)
        self._decode(job, step, payload, out, starts[0])

    def _decode(self, job: _Gathering, step: Step, payload: Payload, out: Rows, start: int) -> None:
        try:
            part = _part(out, step, start)
            job.codec.decode(self.spec, payload, part, first=start - step.segment.start)
        except Exception as error:
            job.failed.setdefault(step.segment.key, (step.segment, error))
        finally:
            job.finish_part()


def _part(out: Rows, step: Step, start: int) -> Rows:
    """Where the rows of `step` from `start` on belong; with its last ones go those of windows.

    A window may be longer than the last segment: then the ones before hold the rest of it.
    """
    stop = min(start + DECODE_ROWS, step.stop)
    part = out.part(start, stop)
    if stop < step.stop:
        return part
    window = {role: _within(array, out.stop, step) for role, array in out.window.items()}
    return evolve(part, window=window if any(one.shape[2] for one in window.values()) else {})


def _within(array: RowArray, stop: int, step: Step) -> RowArray:
    """The rows of a window that ends at `stop`, as far as they are in `step`."""
    first = stop - array.shape[2]
    return array[:, :, max(step.segment.start - first, 0) : max(step.stop - first, 0)]
