"""What is kept outside the engine: encoded segments in RAM (warm) and in the home (cold).

Runs on the engine thread, which alone changes the lineage and the registry. Decides what is
written and what has to leave; the writing itself is the store thread's.
"""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from attrs import define, evolve, field

from agentcache.domain.errors import CatalogueConflict, IntegrityError, SegmentMissing, StoreFull
from agentcache.domain.lineage import Lineage, Match
from agentcache.domain.plan import Park
from agentcache.domain.registry import SessionRegistry
from agentcache.domain.request import Tier
from agentcache.domain.segment import Segment
from agentcache.domain.session import Cursor, Session, SessionKey
from agentcache.domain.spec import CacheSpec
from agentcache.ports.codec import Codec
from agentcache.ports.engine import Engine
from agentcache.ports.payload import Payload
from agentcache.ports.session_store import Catalogue, Commit
from agentcache.ports.telemetry import Telemetry
from agentcache.succession import NAMELESS
from agentcache.writer import Job, Writer

FILE_OVERHEAD = 4096  # header of a segment file, and rounding up to whole disk blocks

Post = Callable[[Callable[[], None]], None]
Done = Callable[[bool], None]


def _ignore(_durable: bool) -> None:
    """For writes whose end nobody waits for."""


@define(eq=False)
class Keeper:
    """Owns the warm payloads, and keeps both tiers within their caps.

    `post` runs a call on the engine thread, where the store thread's answers are taken.
    `read_only` says why nothing can be written at the moment; every turn tries again.
    """

    spec: CacheSpec
    codec: Codec
    lineage: Lineage
    registry: SessionRegistry
    writer: Writer
    telemetry: Telemetry
    post: Post
    warm_cap: int
    cold_cap: int
    read_only: str | None = field(default=None, init=False)
    _warm: dict[bytes, Payload] = field(factory=dict, init=False)
    _writing: set[bytes] = field(factory=set, init=False)
    _pins: dict[SessionKey, tuple[bytes, ...]] = field(factory=dict, init=False)
    _untold: int = field(default=0, init=False)

    @property
    def warm(self) -> Mapping[bytes, Payload]:
        """The encoded segments in RAM, a read-only view."""
        return MappingProxyType(self._warm)

    @property
    def is_writing(self) -> bool:
        """Whether somebody still waits to be told that something is written."""
        return self._untold > 0

    @property
    def cold_bytes(self) -> int:
        """What the segments in the home take there."""
        return self.lineage.nbytes(Tier.COLD) + FILE_OVERHEAD * self.lineage.count(Tier.COLD)

    def open(self, catalogue: Catalogue) -> None:
        """Take in what the home holds, and bring it within the cap."""
        for segment in catalogue.segments:
            self.lineage.add(segment, Tier.COLD)
        for session in sorted(catalogue.sessions, key=lambda one: one.used):
            self._place(session)
        self._make_room(0)

    # -- keeping -----------------------------------------------------------------------------

    def keep(self, engine: Engine, park: Park) -> Match:
        """Encode the rows of `park` that the lineage lacks; returns the path to its last row."""
        path = self.lineage.match(park.root, park.ids)
        for stop in park.cuts:
            if stop > path.length:
                self._append(engine, park, path, stop)
                path = self.lineage.match(park.root, park.ids)
        return path

    def write(self, path: Match, session: Session | None, done: Done = _ignore) -> None:
        """Make the path durable, and `session` stand at its end.

        `done` is called on the engine thread once the commit is made, or is known to be impossible.
        """
        if session is not None:
            self._place(session)
        self._write(path, session, done, attempts=2)

    def promote(self, read: Iterable[tuple[Segment, Payload]]) -> None:
        """Segments were read from disk: keep them in RAM while there is room."""
        for segment, payload in read:
            if segment.key in self.lineage and segment.key not in self._warm:
                self._warm[segment.key] = payload
                self.lineage.add(segment, Tier.WARM)
        self._trim_warm()

    # -- losing ------------------------------------------------------------------------------

    def discard(self, failed: Iterable[tuple[Segment, Exception]]) -> None:
        """Segments cannot be used: they, and all that builds on them, are misses from now on."""
        for segment, error in failed:
            self.telemetry.corrupt(str(error))
            if segment.key in self.lineage:
                corrupt = (segment.key,) if not isinstance(error, SegmentMissing) else ()
                self.writer.submit(Job(self._cut(segment.key), corrupt=corrupt))

    def forget(self, key: SessionKey) -> Session | None:
        """The session is deleted; its rows stay as long as others, or the caps, let them."""
        session = self.registry.remove(key)
        if session is not None:
            self.lineage.release(self._pins.pop(key, ()))
            self.writer.submit(Job(Commit(forget=(key,))))
        return session

    def check_integrity(self) -> None:
        """Raise IntegrityError unless payloads, lineage, registry and caps agree."""
        self.registry.check_integrity()
        warm = {segment for segment in self._warm if self.lineage.resides(segment, Tier.WARM)}
        if warm != self._warm.keys() or len(warm) != self.lineage.count(Tier.WARM):
            raise IntegrityError("the payloads in RAM are not those of the warm tier")
        for session in self.registry:
            at = session.cursor
            if at is not None and (
                at.key not in self.lineage
                or not self.lineage[at.key].start < at.row <= self.lineage[at.key].stop
            ):
                raise IntegrityError(f"session {session.name!r} stands where nothing is")

    # -- sessions ----------------------------------------------------------------------------

    def _place(self, session: Session) -> None:
        """Put the session in the registry, and let its pin follow its cursor."""
        self.registry.put(session)
        path = self.lineage.path(session.cursor).keys if session.cursor else ()
        self.lineage.touch(path)
        before = self._pins.pop(session.key, ())
        if session.pinned:
            self.lineage.hold(path)
            self._pins[session.key] = path
        self.lineage.release(before)

    def _step_back(self, segment: Segment) -> tuple[list[Session], list[SessionKey]]:
        """`segment` is gone: its sessions stand where it began. Nameless ones without rows go."""
        moved, gone = [], []
        cursor = Cursor(segment.parent, segment.start) if segment.parent else None
        for session in self.registry.at_segment(segment.key):
            if cursor is None and session.name.startswith(NAMELESS) and not session.pinned:
                self.registry.remove(session.key)
                gone.append(session.key)
            else:
                moved.append(evolve(session, cursor=cursor))
                self.registry.put(moved[-1])
        return moved, gone

    # -- writing -----------------------------------------------------------------------------

    def _write(self, path: Match, session: Session | None, done: Done, attempts: int) -> None:
        segments = tuple(
            step.segment
            for step in path.steps
            if step.segment.key in self._warm and not self._is_written(step.segment.key)
        )
        if not self._make_room(sum(one.nbytes + FILE_OVERHEAD for one in segments)):
            self.read_only = f"the disk cap of {self.cold_cap} bytes has no room for a turn"
            segments = ()
        keys = tuple(segment.key for segment in segments)
        self._writing.update(keys)
        self.lineage.hold(path.keys)
        standing = session and evolve(session, cursor=self._durable(path))
        job = Job(
            Commit(add=segments, put=(standing,) if standing else ()),
            tuple((segment, self._warm[segment.key]) for segment in segments),
            done=lambda error: self.post(
                lambda: self._written(path, segments, session, done, attempts - 1, error)
            ),
        )
        self._untold += 1
        self.writer.submit(job)

    def _written(
        self,
        path: Match,
        segments: tuple[Segment, ...],
        session: Session | None,
        done: Done,
        attempts: int,
        error: Exception | None,
    ) -> None:
        self._untold -= 1
        self._writing.difference_update(segment.key for segment in segments)
        self.lineage.release(path.keys)
        if error is None:
            self._settle(segments)
            done(self._durable(path) == path.cursor)
        elif attempts and isinstance(error, StoreFull | CatalogueConflict):
            self._evict(error.needed if isinstance(error, StoreFull) else 0)
            self._write(path, self._latest(session), done, attempts)
        else:
            self.read_only = str(error) or type(error).__name__
            done(False)
        self._trim_warm()

    def _settle(self, segments: tuple[Segment, ...]) -> None:
        for segment in segments:
            if segment.key in self.lineage:
                self.lineage.add(segment, Tier.COLD)
        if segments:
            self.read_only = None
            self.telemetry.stored(len(segments), sum(segment.nbytes for segment in segments))

    def _latest(self, session: Session | None) -> Session | None:
        """The session, unless a later turn has replaced it, whose own write then carries it."""
        if session is None:
            return None
        now = self.registry.get(session.key)
        return session if now and now.generation == session.generation else None

    def _is_written(self, key: bytes) -> bool:
        return key in self._writing or self.lineage.resides(key, Tier.COLD)

    def _durable(self, path: Match) -> Cursor | None:
        """The last row of the path that is, or is about to be, in the home."""
        cursor = None
        for step in path.steps:
            if not self._is_written(step.segment.key):
                break
            cursor = Cursor(step.segment.key, step.stop)
        return cursor

    def _append(self, engine: Engine, park: Park, path: Match, stop: int) -> None:
        start, parent = path.length, path.cursor
        payload = self.codec.encode(self.spec, engine.export(park.sequence, start, stop))
        segment = Segment.following(
            park.root, parent.key if parent else None, start, park.ids[start:stop], payload.nbytes
        )
        self._warm[segment.key] = payload
        self.lineage.add(segment, Tier.WARM)

    # -- caps --------------------------------------------------------------------------------

    def _make_room(self, incoming: int) -> bool:
        """Evict until `incoming` bytes fit under the cold cap; False when they never will."""
        keys = [key for key in self._writing if key in self.lineage]
        writing = sum(self.lineage[key].nbytes + FILE_OVERHEAD for key in keys)
        return self._evict(self.cold_bytes + writing + incoming - self.cold_cap)

    def _evict(self, excess: int) -> bool:
        """Let segments leave the home until it holds `excess` bytes less."""
        freed, changes = 0, []
        while freed < excess and (victim := self.lineage.coldest(Tier.COLD)) is not None:
            freed += victim.nbytes + FILE_OVERHEAD
            changes.append(self._cut(victim.key))
        if changes:
            self.telemetry.evicted(Tier.COLD, len(changes), freed)
            self.writer.submit(Job(_merged(changes)))
        return freed >= excess

    def _trim_warm(self) -> None:
        count, before = 0, self.lineage.nbytes(Tier.WARM)
        while self.lineage.nbytes(Tier.WARM) > self.warm_cap:
            victim = self.lineage.coldest(Tier.WARM)
            if victim is None:
                break
            count += 1
            if self.lineage.resides(victim.key, Tier.COLD):
                self.lineage.leave(victim.key, Tier.WARM)
                del self._warm[victim.key]
            else:
                self.writer.submit(Job(self._cut(victim.key)))
        if count:
            freed = before - self.lineage.nbytes(Tier.WARM)
            self.telemetry.evicted(Tier.WARM, count, freed)

    def _cut(self, key: bytes) -> Commit:
        """Take a segment and its descendants out; returns the change that makes it durable."""
        moved: dict[SessionKey, Session] = {}
        gone: list[SessionKey] = []
        segments = self.lineage.cut(key)
        for segment in segments:  # leaves first, so that sessions step back all the way
            self._warm.pop(segment.key, None)
            stepped, removed = self._step_back(segment)
            moved.update((session.key, session) for session in stepped)
            gone.extend(removed)
        put = tuple(session for key, session in moved.items() if key not in gone)
        return Commit(drop=tuple(one.key for one in segments), put=put, forget=tuple(gone))


def _merged(changes: Iterable[Commit]) -> Commit:
    """One change for several: of a session that several put, the last counts."""
    put: dict[SessionKey, Session] = {}
    drop: list[bytes] = []
    forget: list[SessionKey] = []
    for change in changes:
        put.update((session.key, session) for session in change.put)
        drop.extend(change.drop)
        forget.extend(change.forget)
    return Commit(
        drop=tuple(drop),
        put=tuple(session for key, session in put.items() if key not in forget),
        forget=tuple(forget),
    )
