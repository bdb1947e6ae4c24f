"""The tiers outside the engine: what is encoded, in RAM (warm) and in the home (cold), and who
stands on it. What has to leave them leaves them here.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from attrs import define, evolve, field

from agentcache.domain.errors import IntegrityError
from agentcache.domain.lineage import Lineage
from agentcache.domain.registry import SessionRegistry
from agentcache.domain.request import Tier
from agentcache.domain.segment import Segment
from agentcache.domain.session import Cursor, Session, SessionKey
from agentcache.outbox import Done, Outbox
from agentcache.pins import Pins
from agentcache.ports.payload import Payload
from agentcache.ports.telemetry import Telemetry
from agentcache.succession import NAMELESS


@define(eq=False)
class Tiers:
    """Owns the payloads in RAM, and keeps them within their cap.

    Used on the engine thread, which alone changes the lineage and the registry; the home is told
    through the `outbox`.
    """

    outbox: Outbox
    telemetry: Telemetry
    warm_cap: int
    lineage: Lineage = field(init=False)
    registry: SessionRegistry = field(init=False)
    pins: Pins = field(init=False)
    _warm: dict[bytes, Payload] = field(factory=dict, init=False)

    @lineage.default
    def _lineage_of_outbox(self) -> Lineage:
        return self.outbox.lineage

    @registry.default
    def _registry_of_outbox(self) -> SessionRegistry:
        return self.outbox.registry

    @pins.default
    def _new_pins(self) -> Pins:
        return Pins(self.lineage, self.registry)

    @property
    def warm(self) -> Mapping[bytes, Payload]:
        """The encoded segments in RAM, a read-only view."""
        return MappingProxyType(self._warm)

    # -- coming ------------------------------------------------------------------------------

    def place(self, session: Session) -> None:
        """Put the session in the registry, and let its pin follow its cursor."""
        self.registry.put(session)
        self.lineage.touch(self.lineage.path(session.cursor).keys if session.cursor else ())
        self.pins.follow(session)

    def accept(self, segment: Segment, payload: Payload) -> None:
        """Take a new segment, whose parent is here, into RAM. Raises KeyError if it is not."""
        if segment.key not in self.lineage:
            self.lineage.add(segment, Tier.WARM)
            self._warm[segment.key] = payload

    def promote(self, read: Iterable[tuple[Segment, Payload]]) -> None:
        """Segments were read from disk: keep them in RAM, until `trim`."""
        for segment, payload in read:
            if segment.key in self.lineage and segment.key not in self._warm:
                self._warm[segment.key] = payload
                self.lineage.add(segment, Tier.WARM)

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

    # -- leaving -----------------------------------------------------------------------------

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

    def _leave_warm(self, victim: Segment) -> None:
        if self.lineage.resides(victim.key, Tier.COLD):
            self.lineage.leave(victim.key, Tier.WARM)
            del self._warm[victim.key]
        else:
            self.cut(victim.key)

    def discard(self, failed: Iterable[tuple[Segment, Exception]]) -> None:
        """Segments cannot be used: they, and all that builds on them, are misses from now on."""
        corrupt = []
        for segment, error in failed:
            self.telemetry.corrupt(str(error))
            if segment.key in self.lineage:
                self.cut(segment.key)
            if segment.key in self.outbox.dropping:
                corrupt.append(segment.key)
        self.outbox.settle(tuple(corrupt))

    def forget(self, key: SessionKey, done: Done) -> Session | None:
        """See `Keeper.forget`."""
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
            self.cut(key)
            key = parent

    def cut(self, key: bytes) -> None:
        """Take a segment and its descendants out. The home is told when the outbox settles."""
        for segment in self.lineage.cut(key):  # leaves first: sessions step back all the way
            self._warm.pop(segment.key, None)
            self.outbox.drop(segment)
            self._step_back(segment)

    def _step_back(self, segment: Segment) -> None:
        """`segment` is gone: its sessions stand where it began. Nameless ones without rows go."""
        cursor = Cursor(segment.parent, segment.start) if segment.parent else None
        for session in self.registry.at_segment(segment.key):
            self.outbox.move(session.key)
            if cursor is None and session.name.startswith(NAMELESS) and not session.pinned:
                self.registry.remove(session.key)
            else:
                self.registry.put(evolve(session, cursor=cursor))

    # -- checking ----------------------------------------------------------------------------

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
