"""The lives of processes that own a home one after another, and what they are promised to find."""

import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

import pytest
from attrs import define, evolve, field, frozen

from agentcache.adapters.disk import reserve
from agentcache.adapters.disk.catalogue import SqliteSessionStore
from agentcache.adapters.disk.home import Home
from agentcache.adapters.disk.segments import DiskSegmentStore
from agentcache.domain.segment import Segment
from agentcache.domain.session import Cursor, Session, SessionKey
from agentcache.domain.spans import Span, SpanKind
from agentcache.domain.tokens import tokens
from agentcache.ports.payload import Payload, Tensor
from agentcache.ports.session_store import Catalogue, Commit
from agentcache.writer import Job, Writer
from tests import faults
from tests.faults.medium import Medium

ROOT = bytes(range(32))
QUARANTINE_BYTES = 2500


class ProcessEnded(Exception):
    """A process has ended in the middle of its work."""


@frozen
class Kept:
    """What a home holds."""

    segments: Mapping[bytes, Segment] = field(factory=dict)
    sessions: Mapping[SessionKey, Session] = field(factory=dict)

    @classmethod
    def of(cls, catalogue: Catalogue) -> "Kept":
        """What `catalogue` tells of."""
        return cls(
            {one.key: one for one in catalogue.segments},
            {one.key: one for one in catalogue.sessions},
        )

    def after(self, change: Commit) -> "Kept":
        """What it holds when all of `change` was done."""
        segments = {key: one for key, one in self.segments.items() if key not in change.drop}
        sessions = {key: one for key, one in self.sessions.items() if key not in change.forget}
        segments.update((one.key, one) for one in change.add)
        sessions.update((one.key, one) for one in change.put)
        return Kept(segments, sessions)

    def runs(self) -> list[list[Segment]]:
        """Neighbours, each of which leaves the one before it at its end."""
        known = self.segments
        return [
            [known[one.parent], one]
            for one in known.values()
            if one.parent in known and one.start == known[one.parent].stop
        ]

    def leaves(self) -> list[Segment]:
        """The segments that no other follows."""
        parents = {one.parent for one in self.segments.values()}
        return [one for one in self.segments.values() if one.key not in parents]


@define(eq=False)
class Lives:
    """One home on a medium. `promised` is what it must hold, whatever happens to it.

    `made` numbers the segments, whose tokens follow from it. `doubtful` is the change that the last
    process was making when it ended. What makes changes raises ProcessEnded then, and returns
    otherwise whether the change was made.

    When a commit fails, and so does the one that takes its place in the log, then the first may be
    found there by the next process, whole.
    """

    medium: Medium
    promised: Kept = field(factory=Kept)
    made: int = 0
    doubtful: Commit | None = None
    segments: DiskSegmentStore = field(init=False)
    _writer: Writer = field(init=False)
    _life: ExitStack | None = None
    _unmade: Commit | None = None

    @classmethod
    def at(cls, home: Path) -> "Lives":
        """Lives in a new home, whose folder is made."""
        home.mkdir()
        return cls(Medium.of(home))

    @property
    def is_open(self) -> bool:
        """Whether there is a process."""
        return self._life is not None

    # -- begin and end -----------------------------------------------------------------------

    def open(self) -> None:
        """Begin a life, and find what was promised. Raises what opening a home raises."""
        self._compare(self.begin())

    def begin(self) -> Kept:
        """Begin a life; returns what the home holds. Raises what opening a home raises."""
        with ExitStack() as life:
            life.enter_context(_small_reserve())
            life.enter_context(faults.on(self.medium))
            home = life.enter_context(Home.open(self.medium.home))
            self.segments = DiskSegmentStore.open(home.segments, home.quarantine, QUARANTINE_BYTES)
            life.callback(self.segments.close)
            sessions = SqliteSessionStore.open(home.catalogue)
            life.callback(sessions.close)
            self._writer = Writer(self.segments, sessions)
            life.callback(self._writer.close)
            catalogue, _ = self._writer.open()
            self._life = life.pop_all()
        return Kept.of(catalogue)

    def close(self) -> None:
        """End the life as it should end."""
        if self._life is not None:
            self._life.close()
            self._life = None

    def kill(self) -> None:
        """End the life as kill -9 does: all that was written is there."""
        self.medium.is_alive = False
        self.close()
        self.medium.revive()

    def cut_power(self, chance: Random) -> None:
        """End the life as a power cut does: what was not synced may be there, or not."""
        self.medium.is_alive = False
        self.close()
        home = self.medium.home
        number = int(home.suffix[1:] or 0) + 1
        self.medium = self.medium.cut_power(chance, home.with_suffix(f".{number}"))
        shutil.rmtree(home)

    # -- work --------------------------------------------------------------------------------

    def turn(self, name: str, sizes: list[int], at: Cursor | None, now: float = 0.0) -> bool:
        """A turn of so many segments of so many rows, from `at` on. Returns whether it is kept."""
        added: list[tuple[Segment, Payload]] = []
        for rows in sizes:
            added.append(self._segment(rows, at))
            at = Cursor(added[-1][0].key, added[-1][0].stop)
        key = SessionKey("tenant", ROOT, name)
        before = self.promised.sessions.get(key) or Session(key, created=now)
        said = Span(SpanKind.CONTENT, "user", f"turn {self.made}", tokens([self.made]))
        session = before.succeeded((*before.spans, said), at, b"", now)
        commit = Commit(add=tuple(segment for segment, _ in added), put=(session,))
        return self._do(Job(commit, tuple(added)))

    def evict(self, leaf: Segment, corrupt: bool = False) -> bool:
        """Drop a segment that none follows; sessions at it step back."""
        cursor = Cursor(leaf.parent, leaf.start) if leaf.parent else None
        back = (
            evolve(one, cursor=cursor)
            for one in self.promised.sessions.values()
            if one.cursor and one.cursor.key == leaf.key
        )
        commit = Commit(drop=(leaf.key,), put=tuple(back))
        return self._do(Job(commit, corrupt=(leaf.key,) if corrupt else ()))

    def merge(self, run: list[Segment]) -> bool:
        """Put neighbours together: their file first, and then their place in the catalogue."""
        ids = sum((one.ids for one in run[1:]), run[0].ids)
        width = 16 * (1 + len(ids) % 9)
        first = run[0]
        merged = Segment.following(ROOT, first.parent, first.start, ids, len(ids) * width)
        if merged.key in self.promised.segments:
            return True
        if not self._do(Job(Commit(), ((merged, _payload(merged)),), idle=True)):
            return False
        gone = {one.key for one in run}
        known = self.promised.segments.values()
        after = tuple(
            one.adopted_by(merged.key)
            for one in known
            if one.parent in gone and one.key not in gone
        )
        moved = tuple(
            evolve(one, cursor=Cursor(merged.key, one.cursor.row))
            for one in self.promised.sessions.values()
            if one.cursor and one.cursor.key in gone
        )
        return self._do(Job(Commit((merged, *after), tuple(gone), moved)))

    def forget(self, key: SessionKey) -> bool:
        """Forget a session."""
        return self._do(Job(Commit(forget=(key,))))

    def _do(self, job: Job) -> bool:
        told: Future[Exception | None] = Future()
        struck = self.medium.struck
        self._writer.submit(evolve(job, done=told.set_result))
        problem = told.result(timeout=60)
        if problem is None:
            self.promised = self.promised.after(job.commit)
            if job.commit != Commit():
                self._unmade = None
        elif not self.medium.is_alive:
            self.doubtful = job.commit
            raise ProcessEnded from problem
        elif self.medium.struck > struck + 1:
            self._unmade = job.commit
        return problem is None

    def _segment(self, rows: int, at: Cursor | None) -> tuple[Segment, Payload]:
        """One that never was before. Its payload follows from its key."""
        self.made += 1
        ids = tokens([self.made] * rows)
        width = 16 * (1 + self.made % 9)
        segment = Segment.following(
            ROOT, at.key if at else None, at.row if at else 0, ids, rows * width
        )
        return segment, _payload(segment)

    # -- what must hold ----------------------------------------------------------------------

    def check(self) -> None:
        """What the store counts is what there is, and the quarantine is within its cap."""
        self.segments.check_integrity()
        sizes = {path: path.stat().st_size for path in self._files("segments", "quarantine")}
        assert self.segments.nbytes() == sum(sizes.values())
        aside = sum(size for path, size in sizes.items() if path.parent.name == "quarantine")
        assert aside <= QUARANTINE_BYTES

    def check_files(self) -> None:
        """Every segment is whole, and there is no other file (as after opening)."""
        whole = self.promised.segments
        for segment in whole.values():
            read, right = self.segments.read(segment), _payload(segment)
            assert {name: bytes(one.data) for name, one in read.tensors.items()} == {
                name: bytes(one.data) for name, one in right.tensors.items()
            }
        names = {path.name for path in self._files("segments")}
        assert names == {f"{key.hex()}.safetensors" for key in whole}
        assert not [one for one in self._files(".") if one.name.endswith(".tmp")]

    def _compare(self, found: Kept) -> None:
        for change in filter(None, (self.doubtful, self._unmade)):
            if found == self.promised.after(change):
                self.promised = found
                break
        assert found == self.promised
        self.doubtful = self._unmade = None

    def _files(self, *folders: str) -> Iterator[Path]:
        for folder in folders:
            yield from (one for one in (self.medium.home / folder).rglob("*") if one.is_file())


@contextmanager
def ended(lives: Lives) -> Iterator[Lives]:
    """Let the last of `lives` end, whatever happens in it."""
    try:
        yield lives
    finally:
        lives.kill()


@contextmanager
def _small_reserve() -> Iterator[None]:
    """Most of the time would be spent writing it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reserve, "RESERVE_BYTES", 4096)
        yield


def _payload(segment: Segment) -> Payload:
    width = segment.nbytes // len(segment)
    data = (segment.key * (segment.nbytes // 32 + 1))[: segment.nbytes]
    tensor = Tensor("U8", (len(segment), width), memoryview(data))
    return Payload("native", len(segment), {"g0.k": tensor})
