"""Who is in a tier of segments: in which order they leave it, and the bytes that they take."""

from collections.abc import Collection

from attrs import define, field

from agentcache.domain.errors import IntegrityError
from agentcache.domain.lru import SegmentedLRU
from agentcache.domain.segment import Segment


@define(eq=False)
class Residents:
    """The segments in one tier. `order` knows who is used, and who is held, here or not."""

    order: "SegmentedLRU[bytes]" = field(factory=SegmentedLRU, init=False)
    nbytes: int = field(default=0, init=False)

    def __len__(self) -> int:
        return len(self.order)

    def __contains__(self, key: bytes) -> bool:
        return key in self.order

    def add(self, segment: Segment) -> None:
        """The segment is in the tier from now on; nothing changes if it is already."""
        if segment.key not in self.order:
            self.order.add(segment.key)
            self.nbytes += segment.nbytes

    def remove(self, segment: Segment) -> None:
        """The segment is in the tier no more; nothing changes if it never was."""
        if segment.key in self.order:
            self.order.discard(segment.key)
            self.nbytes -= segment.nbytes

    def check_integrity(self, known: Collection[Segment]) -> None:
        """Raise IntegrityError unless all residents are `known`, and take what is counted."""
        self.order.check_integrity()
        there = [segment.nbytes for segment in known if segment.key in self.order]
        if len(there) != len(self.order):
            raise IntegrityError("a segment is in a tier that is nowhere in the tree")
        if sum(there) != self.nbytes:
            raise IntegrityError(f"{self.nbytes} bytes are not those in the tier")
