"""What the home may take of the disk, and who leaves it when more is to come."""

from collections.abc import Callable

from attrs import define

from agentcache.domain.errors import IntegrityError
from agentcache.domain.request import Tier
from agentcache.outbox import FILE_OVERHEAD, weight
from agentcache.tiers import Tiers


def boundless() -> int:
    """What is free where nobody counts."""
    return 1 << 62


@define(eq=False)
class DiskRoom:
    """Keeps the cold tier within `cap` bytes, and `floor` of the disk's `free_bytes` free."""

    tiers: Tiers
    cap: int
    floor: int = 0
    free_bytes: Callable[[], int] = boundless

    @property
    def cold_bytes(self) -> int:
        """What the segments in the home take there, those among them that it failed to drop."""
        lineage = self.tiers.lineage
        known = lineage.nbytes(Tier.COLD) + FILE_OVERHEAD * lineage.count(Tier.COLD)
        return known + weight(self.tiers.outbox.dropping.values())

    def fits(self, incoming: int) -> bool:
        """Whether `incoming` bytes fit on the disk and under the cap as things are."""
        taken = self.cold_bytes + self.tiers.outbox.coming_bytes
        return taken + incoming <= self.cap and self._below_floor(incoming) <= 0

    def make(self, incoming: int) -> bool:
        """Evict until `incoming` bytes fit under the cap; False when they never will."""
        self.tiers.outbox.settle()  # nobody leaves for what only has to be dropped
        room = self.cap - self.tiers.outbox.coming_bytes
        below = self._below_floor(incoming) if incoming else 0
        if incoming > room or below > self.cold_bytes:  # nobody leaves for what cannot be
            self.evict(self.cold_bytes - room)
            return False
        return self.evict(max(self.cold_bytes + incoming - room, below))

    def evict(self, excess: int) -> bool:
        """Let segments leave the home until it holds `excess` bytes less; whether it does."""
        freed = count = 0
        while freed < excess and (victim := self.tiers.lineage.coldest(Tier.COLD)) is not None:
            count, freed = count + 1, freed + weight([victim])
            self.tiers.cut(victim.key)
        if count:
            self.tiers.telemetry.evicted(Tier.COLD, count, freed)
        self.tiers.outbox.settle()
        return freed >= excess

    def why_full(self, incoming: int) -> str:
        """Why there was no room for `incoming` bytes, for whoever runs this."""
        if self._below_floor(incoming) <= 0:
            return f"the disk cap of {self.cap} bytes has no room for a turn"
        return (
            f"the disk has {self.free_bytes()} bytes free, of which {self.floor} stay free: "
            "make room there, or lower --disk-floor"
        )

    def _below_floor(self, incoming: int) -> int:
        """How far below its floor `incoming` bytes would bring the disk."""
        outbox = self.tiers.outbox
        coming = outbox.coming_bytes + incoming
        return self.floor + coming - outbox.leaving_bytes - self.free_bytes()

    def check_integrity(self) -> None:
        """Raise IntegrityError if more than `cap` bytes are to stay in the home, and could leave.

        More may stay where nobody can leave: pins count more than the cap, when that is lowered.
        What the home failed to drop is not to stay; it takes its bytes until it can be told again.
        """
        outbox = self.tiers.outbox
        staying = self.cold_bytes - weight(outbox.dropping.values()) + outbox.coming_bytes
        if staying > self.cap and self.tiers.lineage.coldest(Tier.COLD) is not None:
            raise IntegrityError(f"{staying} bytes are to stay in the home, of {self.cap}")
