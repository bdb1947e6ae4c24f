"""What is kept outside the engine: encoded segments in RAM (warm) and in the home (cold).

Runs on the engine thread, which alone changes the lineage and the registry. Decides what is
written and what has to leave; the writing itself is the store thread's.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType

from attrs import define, evolve, field

from agentcache.domain.errors import CatalogueConflict, IntegrityError, StoreFull
from agentcache.domain.lineage import Lineage
from agentcache.domain.path import Match
from agentcache.domain.plan import Park
from agentcache.domain.registry import SessionRegistry
from agentcache.domain.request import Tier
from agentcache.domain.segment import Segment
from agentcache.domain.session import Cursor, Session, SessionKey
from agentcache.domain.spec import CacheSpec
from agentcache.outbox import FILE_OVERHEAD, Done, Outbox, Post, text_of, weight
from agentcache.pins import Pins
from agentcache.ports.codec import Codec
from agentcache.ports.engine import RowSource
from agentcache.ports.payload import Payload
from agentcache.ports.session_store import Catalogue, Commit
from agentcache.ports.telemetry import Telemetry
from agentcache.succession import NAMELESS
from agentcache.writer import Writer


def _ignore(_durable: bool) -> None:
    """For writes whose end nobody waits for."""


def boundless() -> int:
    """What is free where nobody counts."""
    return 1 << 62


@define(eq=False)
class Keeper:
    """Owns the warm payloads, and keeps both tiers within their caps.

    `post` runs a call on the engine thread, where the store thread's answers are taken. While
    nothing can be written (`read_only`), every turn tries again. Of the `free_bytes` of the disk
    `disk_floor` stay free.
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
    disk_floor: int = 0
    free_bytes: Callable[[], int] = boundless
    outbox: Outbox = field(init=False)
    pins: Pins = field(init=False)
    _warm: dict[bytes, Payload] = field(factory=dict, init=False)
    _behind: set[SessionKey] = field(factory=set, init=False)  # their rows could not be written
    _grown: set[SessionKey] = field(factory=set, init=False)

    @outbox.default
    def _new_outbox(self) -> Outbox:
        return Outbox(self.lineage, self.registry, self.writer, self.post)

    @pins.default
    def _new_pins(self) -> Pins:
        return Pins(self.lineage, self.registry)

    @property
    def read_only(self) -> str | None:
        """Why nothing can be written at the moment."""
        return self.outbox.read_only

    @property
    def warm(self) -> Mapping[bytes, Payload]:
        """The encoded segments in RAM, a read-only view."""
        return MappingProxyType(self._warm)

    @property
    def is_writing(self) -> bool:
        """Whether the store thread has something to do, or to tell."""
        return self.outbox.untold > 0

    @property
    def cold_bytes(self) -> int:
        """What the segments in the home take there, those among them that it failed to drop."""
        known = self.lineage.nbytes(Tier.COLD) + FILE_OVERHEAD * self.lineage.count(Tier.COLD)
        return known + weight(self.outbox.dropping.values())

    def open(self, catalogue: Catalogue) -> None:
        """Take in what the home holds, and bring it within the cap."""
        for segment in catalogue.segments:
            self.lineage.add(segment, Tier.COLD)
        for session in sorted(catalogue.sessions, key=lambda one: one.used):
            self._place(session)
        self._make_room(0)

    def serve(self, spec: CacheSpec) -> None:
        """Keep rows of this shape from now on: there is another model. All that is kept stays."""
        self.spec = self.lineage.spec = spec
        self._grown.clear()

    # -- keeping -----------------------------------------------------------------------------

    def keep(self, source: RowSource, park: Park) -> Match:
        """Encode the rows of `park` that the lineage lacks; returns the path to its last row."""
        path = self.lineage.match(park.root, park.ids)
        for stop in park.cuts:
            if stop > path.length:
                self._append(source, park, path, stop)
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
        """Segments were read from disk: keep them in RAM, until `trim`."""
        for segment, payload in read:
            if segment.key in self.lineage and segment.key not in self._warm:
                self._warm[segment.key] = payload
                self.lineage.add(segment, Tier.WARM)

    def accept(self, segment: Segment, payload: Payload) -> None:
        """Take in a segment from elsewhere, whose parent is here: `write` makes it durable."""
        if segment.key not in self.lineage:
            self._warm[segment.key] = payload
            self.lineage.add(segment, Tier.WARM)

    def trim(self) -> None:
        """Let segments leave RAM until the warm tier is within its cap."""
        count, before = 0, self.lineage.nbytes(Tier.WARM)
        while self.lineage.nbytes(Tier.WARM) > self.warm_cap:
            victim = self.lineage.coldest(Tier.WARM)
            if victim is None:
                break
            count += 1
            self._leave_warm(victim)
        if count:
            freed = before - self.lineage.nbytes(Tier.WARM)
            self.telemetry.evicted(Tier.WARM, count, freed)
            self.outbox.settle()

    # -- merging -----------------------------------------------------------------------------

    def take_grown(self) -> tuple[SessionKey, ...]:
        """The sessions whose turns were written since the last call."""
        grown, self._grown = tuple(sorted(self._grown, key=lambda one: one.name)), set()
        return grown

    def replace(self, run: tuple[Segment, ...], merged: Segment, payload: Payload) -> None:
        """`merged`, whose `payload` lies in the home, takes the place of neighbours.

        Whoever stood on one of them stands on it from now on. None of them may be held by anybody
        but pinned sessions. Raises IntegrityError, and changes nothing, if that cannot be.
        """
        gone = {one.key for one in run}
        warm = gone & self._warm.keys()
        tiers = (Tier.COLD, Tier.WARM) if warm else (Tier.COLD,)
        moved = self.lineage.merge(run, merged, *tiers)
        pinned = self.pins.let_go(gone)
        for key in warm:
            del self._warm[key]
        if warm:
            self._warm[merged.key] = payload
        for segment in run:
            self.outbox.drop(segment)
            self._follow(segment, merged)
        for session in pinned:
            self.pins.follow(self.registry.get(session.key) or session)
        self.outbox.adopt((merged, *moved))
        self.outbox.settle()
        self.telemetry.compacted(len(run), merged.nbytes)
        self.trim()

    def _follow(self, segment: Segment, merged: Segment) -> None:
        for session in self.registry.at_segment(segment.key):
            assert session.cursor is not None
            cursor = Cursor(merged.key, session.cursor.row)
            self.registry.put(evolve(session, cursor=cursor))
            self.outbox.move(session.key)

    # -- losing ------------------------------------------------------------------------------

    def discard(self, failed: Iterable[tuple[Segment, Exception]]) -> None:
        """Segments cannot be used: they, and all that builds on them, are misses from now on."""
        corrupt = []
        for segment, error in failed:
            self.telemetry.corrupt(str(error))
            if segment.key in self.lineage:
                self._cut(segment.key)
            if segment.key in self.outbox.dropping:
                corrupt.append(segment.key)
        self.outbox.settle(tuple(corrupt))

    def forget(self, key: SessionKey, done: Done = _ignore) -> Session | None:
        """The session is deleted, and with it the rows at its end that nobody else builds on.

        `done` is called as for `write`, if there is such a session.
        """
        session = self.registry.remove(key)
        if session is not None:
            self.pins.drop(key)
            self.outbox.move(key)
            self._drop_unused(session.cursor)
            self.outbox.settle(done=done)
        return session

    def _drop_unused(self, cursor: Cursor | None) -> None:
        """Take out the segments from `cursor` up that nobody stands on, follows or holds."""
        key = cursor.key if cursor is not None else None
        while key is not None and key in self.lineage:
            parent = self.lineage[key].parent
            if (
                self.lineage.children(key, 1)
                or self.lineage.holds(key)
                or self.registry.at_segment(key)
            ):
                return
            self._cut(key)
            key = parent

    def check_integrity(self) -> None:
        """Raise IntegrityError unless payloads, lineage and registry agree."""
        self.registry.check_integrity()
        warm = {segment for segment in self._warm if self.lineage.resides(segment, Tier.WARM)}
        if warm != self._warm.keys() or len(warm) != self.lineage.count(Tier.WARM):
            raise IntegrityError("the payloads in RAM are not those of the warm tier")
        if any(not self.lineage.resides(segment, Tier.WARM) for segment in self.outbox.writing):
            raise IntegrityError("a segment is being written that is not in RAM")
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
        self.lineage.touch(self.lineage.path(session.cursor).keys if session.cursor else ())
        self.pins.follow(session)

    def _step_back(self, segment: Segment) -> None:
        """`segment` is gone: its sessions stand where it began. Nameless ones without rows go."""
        cursor = Cursor(segment.parent, segment.start) if segment.parent else None
        for session in self.registry.at_segment(segment.key):
            self.outbox.move(session.key)
            if cursor is None and session.name.startswith(NAMELESS) and not session.pinned:
                self.registry.remove(session.key)
            else:
                self.registry.put(evolve(session, cursor=cursor))

    def _latest(self, session: Session | None) -> Session | None:
        """The session, unless a later turn has replaced it, whose own write then carries it."""
        if session is None:
            return None
        now = self.registry.get(session.key)
        return session if now and now.generation == session.generation else None

    # -- writing -----------------------------------------------------------------------------

    def _write(self, path: Match, session: Session | None, done: Done, attempts: int) -> None:
        segments = self._unwritten(path)
        if not segments and session is None:
            done(self.outbox.durable(path) == path.cursor)
            return
        self.lineage.hold(path.keys)
        if not self._make_room(weight(segments)) and segments:
            self.outbox.read_only = self._why_full(weight(segments))
            segments = ()
        self.outbox.begin(segments)
        standing = session and evolve(session, cursor=self.outbox.durable(path))
        self.outbox.submit(
            Commit(add=segments, put=(standing,) if standing else ()),
            partial(self._written, path, segments, session, done, attempts - 1),
            self._warm,
        )

    def _written(
        self,
        path: Match,
        segments: tuple[Segment, ...],
        session: Session | None,
        done: Done,
        attempts: int,
        error: Exception | None,
    ) -> None:
        ours = self.outbox.finish(segments)
        self.lineage.release(path.keys)
        if error is None:
            self._added(ours)
            done(self.outbox.durable(path) == path.cursor)
            if session is not None:
                self._grown.add(session.key)
            if ours:
                self._catch_up()
        else:
            self._not_written(path, session, done, attempts, error)
        self.trim()

    def _added(self, segments: tuple[Segment, ...]) -> None:
        for segment in segments:
            self.lineage.add(segment, Tier.COLD)
        if segments:
            self.outbox.read_only = None
            self.telemetry.stored(len(segments), sum(segment.nbytes for segment in segments))

    def _not_written(
        self, path: Match, session: Session | None, done: Done, attempts: int, error: Exception
    ) -> None:
        if session is not None:  # the home has it where it was before
            self.outbox.move(session.key)
        if attempts and isinstance(error, StoreFull | CatalogueConflict):
            if isinstance(error, StoreFull):
                self._evict(error.needed)
            else:
                self._mend(error)
            self._write(path, self._latest(session), done, attempts)
            return
        if session is not None:
            self._behind.add(session.key)
        self.outbox.read_only = text_of(error)
        done(False)

    def _catch_up(self) -> None:
        """The home can be written again: write what it could not take before."""
        behind, self._behind = self._behind, set()
        for session in map(self.registry.get, behind):
            if session is not None and session.cursor is not None:
                self._write(self.lineage.path(session.cursor), session, _ignore, attempts=1)

    def _mend(self, conflict: CatalogueConflict) -> None:
        """The home lacks a segment that it should have: it is written again, or is gone."""
        if not self.lineage.resides(conflict.key, Tier.COLD):
            return
        if self.lineage.resides(conflict.key, Tier.WARM):
            self.lineage.leave(conflict.key, Tier.COLD)
        else:
            self.telemetry.corrupt(str(conflict))
            self._cut(conflict.key)

    def _unwritten(self, path: Match) -> tuple[Segment, ...]:
        found = (step.segment for step in path.steps if step.segment.key in self._warm)
        return tuple(segment for segment in found if not self.outbox.is_written(segment.key))

    def _append(self, source: RowSource, park: Park, path: Match, stop: int) -> None:
        start, parent = path.length, path.cursor
        payload = self.codec.encode(self.spec, source.export(park.sequence, start, stop))
        segment = Segment.following(
            park.root, parent.key if parent else None, start, park.ids[start:stop], payload.nbytes
        )
        self._warm[segment.key] = payload
        self.lineage.add(segment, Tier.WARM)

    # -- caps --------------------------------------------------------------------------------

    def fits(self, incoming: int) -> bool:
        """Whether `incoming` bytes fit on the disk and under the cold cap as things are."""
        taken = self.cold_bytes + weight(self.outbox.writing.values())
        return taken + incoming <= self.cold_cap and self._below_floor(incoming) <= 0

    def _make_room(self, incoming: int) -> bool:
        """Evict until `incoming` bytes fit under the cold cap; False when they never will."""
        room = self.cold_cap - weight(self.outbox.writing.values())
        below = self._below_floor(incoming) if incoming else 0
        if incoming > room or below > self.cold_bytes:  # nobody leaves for what cannot be
            self._evict(self.cold_bytes - room)
            return False
        return self._evict(max(self.cold_bytes + incoming - room, below))

    def _below_floor(self, incoming: int) -> int:
        """How far below its floor `incoming` bytes would bring the disk."""
        coming = weight(self.outbox.writing.values()) + incoming
        return self.disk_floor + coming - self.outbox.leaving_bytes - self.free_bytes()

    def _why_full(self, incoming: int) -> str:
        if self._below_floor(incoming) <= 0:
            return f"the disk cap of {self.cold_cap} bytes has no room for a turn"
        return (
            f"the disk has {self.free_bytes()} bytes free, of which {self.disk_floor} stay free: "
            "make room there, or lower --disk-floor"
        )

    def _evict(self, excess: int) -> bool:
        """Let segments leave the home until it holds `excess` bytes less."""
        freed = count = 0
        while freed < excess and (victim := self.lineage.coldest(Tier.COLD)) is not None:
            count, freed = count + 1, freed + weight([victim])
            self._cut(victim.key)
        if count:
            self.telemetry.evicted(Tier.COLD, count, freed)
        self.outbox.settle()
        return freed >= excess

    def _leave_warm(self, victim: Segment) -> None:
        if self.lineage.resides(victim.key, Tier.COLD):
            self.lineage.leave(victim.key, Tier.WARM)
            del self._warm[victim.key]
        else:
            self._cut(victim.key)

    def _cut(self, key: bytes) -> None:
        """Take a segment and its descendants out. The home is told when debts are settled."""
        for segment in self.lineage.cut(
            key
        ):  # leaves first, so that sessions step back all the way
            self._warm.pop(segment.key, None)
            self.outbox.drop(segment)
            self._step_back(segment)
