"""The store thread: everything that changes a home is done here, in the order it was asked for."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from attrs import define, field, frozen

from agentcache.domain.errors import CommitInDoubt
from agentcache.domain.segment import Segment
from agentcache.ports.payload import Payload
from agentcache.ports.segment_store import SegmentStore
from agentcache.ports.session_store import Catalogue, Commit, SessionStore

MOST_WAITING_BYTES = 1 << 30

log = logging.getLogger(__name__)


@frozen
class Job:
    """One durable change: the payloads of `commit.add`, the commit, the payloads to forget.

    `corrupt` payloads are set aside instead of being deleted. An `idle` job waits until there is
    nothing else to do. `done` is called on the store thread with None, or with what went wrong;
    nothing of it has happened then, and no payload is left.
    """

    commit: Commit
    payloads: tuple[tuple[Segment, Payload], ...] = ()
    corrupt: tuple[bytes, ...] = ()
    idle: bool = False
    done: Callable[[Exception | None], None] = field(default=lambda _error: None, eq=False)

    @property
    def nbytes(self) -> int:
        """Payload bytes to be written."""
        return sum(payload.nbytes for _, payload in self.payloads)


@define(eq=False)
class Writer:
    """Runs jobs one after another. Whoever asks waits while too many bytes are waiting already."""

    segments: SegmentStore
    sessions: SessionStore
    most_waiting_bytes: int = MOST_WAITING_BYTES
    _jobs: "deque[Job]" = field(factory=deque, init=False)
    _idle_jobs: "deque[Job]" = field(factory=deque, init=False)
    _doubtful: set[bytes] = field(factory=set, init=False)  # payloads of which a commit may speak
    _spoken: set[bytes] = field(factory=set, init=False)  # of which one does since idle jobs wait
    _changed: threading.Condition = field(factory=threading.Condition, init=False)
    _waiting_bytes: int = field(default=0, init=False)
    _closed: bool = field(default=False, init=False)
    _opened: "Future[tuple[Catalogue, bytes]]" = field(factory=Future, init=False)
    _thread: threading.Thread = field(init=False)

    @_thread.default
    def _not_started(self) -> threading.Thread:
        return threading.Thread(target=self._run, name="agentcache-store", daemon=True)

    @property
    def waiting_bytes(self) -> int:
        """Payload bytes of jobs that are not done."""
        return self._waiting_bytes

    def open(self) -> tuple[Catalogue, bytes]:
        """Start the thread; returns what the home holds, and its secret.

        Whatever else lies there is swept out first. Raises what the stores raise when the home
        cannot be read.
        """
        self._thread.start()
        return self._opened.result()

    def submit(self, job: Job) -> None:
        """Ask for `job`; blocks while more than `most_waiting_bytes` wait.

        After `close` its `done` is told at once, on the caller's thread, that it came too late.
        """
        with self._changed:
            self._changed.wait_for(self._has_room)
            late = self._closed
            if not late:
                (self._idle_jobs if job.idle else self._jobs).append(job)
                self._waiting_bytes += job.nbytes
                self._changed.notify_all()
        if late:
            job.done(RuntimeError("the store thread has ended"))

    def close(self) -> None:
        """Do everything that was asked for, then close the catalogue and end the thread.

        Idle jobs that have not begun are told that it is too late.
        """
        with self._changed:
            self._closed = True
            late, self._idle_jobs = tuple(self._idle_jobs), deque()
            self._changed.notify_all()
        for job in late:
            job.done(RuntimeError("the store thread has ended"))
        if self._thread.is_alive():
            self._thread.join()

    def _has_room(self) -> bool:
        return self._closed or self._waiting_bytes <= self.most_waiting_bytes

    def _run(self) -> None:
        try:
            catalogue = self.sessions.load()
            self.segments.sweep(segment.key for segment in catalogue.segments)
            self._opened.set_result((catalogue, self.sessions.salt()))
        except Exception as error:
            self._opened.set_exception(error)
        else:
            self._work()
        self.sessions.close()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            problem = self._attempt(job)
            with self._changed:
                self._waiting_bytes -= job.nbytes
                self._changed.notify_all()
            job.done(problem)

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._idle_jobs or self._closed)
            jobs = self._jobs or self._idle_jobs
            return jobs.popleft() if jobs else None

    def _attempt(self, job: Job) -> Exception | None:
        put = {segment.key for segment, _ in job.payloads}
        try:
            for segment, payload in job.payloads:
                self.segments.put(segment, payload)
            if job.commit != Commit():
                self.sessions.commit(job.commit)
        except CommitInDoubt as error:  # the home may be found with it, and then needs them
            self._doubtful |= put
            return error.cause
        except Exception as error:
            self._remove(put - self._doubtful - self._spoken)
            return error
        self._note(job.commit)
        if job.commit.add or job.commit.put:  # what failed before can no longer be found
            self._remove(self._doubtful - put)
            self._doubtful.clear()
        self._remove(job.commit.drop, job.corrupt)
        return None

    def _note(self, commit: Commit) -> None:
        """What is committed while an idle job waits with the same payload, that job must leave."""
        if self._idle_jobs:
            self._spoken |= {segment.key for segment in commit.add}
            self._spoken -= set(commit.drop)
        else:
            self._spoken.clear()

    def _remove(self, keys: Iterable[bytes], corrupt: Iterable[bytes] = ()) -> None:
        """No commit speaks of these payloads: what stays for now is swept at the next open."""
        for key in keys:
            try:
                (self.segments.quarantine if key in corrupt else self.segments.delete)(key)
            except Exception:
                log.exception("segment %s could not be removed", key.hex()[:16])
