"""Keeping: rows of turns are encoded, and written as soon as there is room for them.

Runs on the engine thread; the writing itself is the store thread's.
"""

from functools import partial

from attrs import define, evolve, field

from agentcache.disk_room import DiskRoom
from agentcache.domain.errors import CatalogueConflict, StoreFull
from agentcache.domain.lineage import Lineage
from agentcache.domain.path import Match
from agentcache.domain.plan import Park
from agentcache.domain.registry import SessionRegistry
from agentcache.domain.request import Tier
from agentcache.domain.segment import Segment
from agentcache.domain.session import Session, SessionKey
from agentcache.domain.spec import CacheSpec
from agentcache.outbox import Done, Outbox, ignore, text_of, weight
from agentcache.ports.codec import Codec
from agentcache.ports.engine import RowSource
from agentcache.ports.session_store import Catalogue, Commit
from agentcache.tiers import Tiers


@define(eq=False)
class Keeper:
    """Keeps the rows of turns in the `tiers`, within the `room` that there is on disk.

    While nothing can be written (`read_only`), every turn tries again. `grown` are the sessions
    whose turns were written, until somebody takes them.
    """

    spec: CacheSpec
    tiers: Tiers
    room: DiskRoom
    lineage: Lineage = field(init=False)
    registry: SessionRegistry = field(init=False)
    outbox: Outbox = field(init=False)
    _behind: set[SessionKey] = field(factory=set, init=False)  # their rows could not be written
    grown: set[SessionKey] = field(factory=set, init=False)

    @lineage.default
    def _lineage_of_tiers(self) -> Lineage:
        return self.tiers.lineage

    @registry.default
    def _registry_of_tiers(self) -> SessionRegistry:
        return self.tiers.registry

    @outbox.default
    def _outbox_of_tiers(self) -> Outbox:
        return self.tiers.outbox

    @property
    def read_only(self) -> str | None:
        """Why nothing can be written at the moment."""
        return self.outbox.read_only

    @property
    def is_writing(self) -> bool:
        """Whether the store thread has something to do, or to tell."""
        return self.outbox.untold > 0

    def open(self, catalogue: Catalogue) -> None:
        """Take in what the home holds, and bring it within the cap."""
        for segment in catalogue.segments:
            self.lineage.add(segment, Tier.COLD)
        for session in sorted(catalogue.sessions, key=lambda one: one.used):
            self.tiers.place(session)
        self.room.make(0)

    def serve(self, spec: CacheSpec) -> None:
        """Keep rows of this shape from now on: there is another model. All that is kept stays."""
        self.spec = self.lineage.spec = spec
        self.grown.clear()

    def take_grown(self) -> tuple[SessionKey, ...]:
        """The sessions whose turns were written since the last call."""
        if not self.grown:
            return ()
        grown, self.grown = tuple(sorted(self.grown, key=lambda one: one.name)), set()
        return grown

    # -- keeping -----------------------------------------------------------------------------

    def keep(self, source: RowSource, park: Park, codec: Codec) -> Match:
        """Encode the rows of `park` that the lineage lacks; returns the path to its last row.

        `codec` is that of their root.
        """
        path = self.lineage.match(park.root, park.ids)
        for stop in park.cuts:
            if stop > path.length:
                self._append(source, park, codec, path, stop)
                path = self.lineage.match(park.root, park.ids)
        return path

    def _append(self, source: RowSource, park: Park, codec: Codec, path: Match, stop: int) -> None:
        start, parent = path.length, path.cursor
        payload = codec.encode(self.spec, source.export(park.sequence, start, stop))
        segment = Segment.following(
            park.root, parent.key if parent else None, start, park.ids[start:stop], payload.nbytes
        )
        self.tiers.accept(segment, payload)

    def forget(self, key: SessionKey, done: Done = ignore) -> Session | None:
        """The session is deleted, and with it the rows at its end that nobody else builds on.

        `done` is called as for `write`, if there is such a session.
        """
        session = self.tiers.forget(key, done)
        self.room.make(0)  # its pin may have kept the home above the cap
        return session

    # -- writing -----------------------------------------------------------------------------

    def write(self, path: Match, session: Session | None, done: Done = ignore) -> None:
        """Make the path durable, and `session` stand at its end.

        `done` is called on the engine thread once the commit is made, or is known to be impossible.
        """
        if session is not None:
            self.tiers.place(session)
        self._write(path, session, done, attempts=2)

    def _write(self, path: Match, session: Session | None, done: Done, attempts: int) -> None:
        segments = self._unwritten(path)
        if not segments and session is None:
            done(self.outbox.durable(path) == path.cursor)
            return
        self.lineage.hold(path.keys)
        if not self.room.make(weight(segments)) and segments:
            self.outbox.read_only = self.room.why_full(weight(segments))
            segments = ()
        self.outbox.begin(segments)
        standing = session and evolve(session, cursor=self.outbox.durable(path))
        self.outbox.submit(
            Commit(add=segments, put=(standing,) if standing else ()),
            partial(self._written, path, segments, session, done, attempts - 1),
            self.tiers.warm,
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
            self.room.make(0)  # and tell the home what it could not be told before
            done(self.outbox.durable(path) == path.cursor)
            if session is not None:
                self.grown.add(session.key)
            if ours:
                self._catch_up()
        else:
            self._not_written(path, session, done, attempts, error)
        self.tiers.trim()

    def _added(self, segments: tuple[Segment, ...]) -> None:
        for segment in segments:
            self.lineage.add(segment, Tier.COLD)
        if segments:
            self.outbox.read_only = None
            self.tiers.telemetry.stored(len(segments), sum(segment.nbytes for segment in segments))

    def _not_written(
        self, path: Match, session: Session | None, done: Done, attempts: int, error: Exception
    ) -> None:
        if session is not None:  # the home has it where it was before
            self.outbox.move(session.key)
        if attempts and isinstance(error, StoreFull | CatalogueConflict):
            if isinstance(error, StoreFull):
                self.room.evict(error.needed)
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
                self._write(self.lineage.path(session.cursor), session, ignore, attempts=1)

    def _mend(self, conflict: CatalogueConflict) -> None:
        """The home lacks a segment that it should have: it is written again, or is gone.

        One whose place it could not be told lies there all the same, and it is told with what
        follows next.
        """
        owed = conflict.key in self.outbox.adopted
        if owed or not self.lineage.resides(conflict.key, Tier.COLD):
            return
        if self.lineage.resides(conflict.key, Tier.WARM):
            self.lineage.leave(conflict.key, Tier.COLD)
        else:
            self.tiers.telemetry.corrupt(str(conflict))
            self.tiers.cut(conflict.key)

    def _unwritten(self, path: Match) -> tuple[Segment, ...]:
        found = (step.segment for step in path.steps if step.segment.key in self.tiers.warm)
        return tuple(segment for segment in found if not self.outbox.is_written(segment.key))

    def _latest(self, session: Session | None) -> Session | None:
        """The session, unless a later turn has replaced it, whose own write then carries it."""
        if session is None:
            return None
        now = self.registry.get(session.key)
        return session if now and now.generation == session.generation else None
