"""Segments in a dict."""

from collections.abc import Iterable
from threading import Lock

from attrs import define, field

from agentcache.domain.errors import IntegrityError, SegmentCorrupt, SegmentMissing, StoreFull
from agentcache.domain.segment import Segment
from agentcache.ports.payload import Payload
from agentcache.ports.segment_store import require_match


@define(eq=False)
class MemorySegmentStore:
    """A SegmentStore that holds `capacity` bytes and forgets them with the process.

    What it keeps in quarantine is bounded by `quarantine_bytes`, the newest first.
    """

    capacity: int | None = None
    quarantine_bytes: int = 256 << 20
    _kept: dict[bytes, tuple[Segment, Payload]] = field(factory=dict)
    _damaged: set[bytes] = field(factory=set)
    _aside: list[int] = field(factory=list)
    _lock: Lock = field(factory=Lock, repr=False)

    def put(self, segment: Segment, payload: Payload) -> int:
        """Keep `payload`; return its bytes."""
        require_match(segment, payload)
        with self._lock:
            taken = self._taken() - self._bytes(segment.key) + payload.nbytes
            if self.capacity is not None and taken > self.capacity:
                raise StoreFull(payload.nbytes)
            self._kept[segment.key] = segment, payload
            self._damaged.discard(segment.key)
        return payload.nbytes

    def read(self, segment: Segment) -> Payload:
        """The payload of `segment`, which must be the very one that was put."""
        with self._lock:
            kept = self._kept.get(segment.key)
            damaged = segment.key in self._damaged
        if not segment.is_sound:
            raise SegmentCorrupt(segment.key, "its key is not that of its tokens")
        if kept is None:
            raise SegmentMissing(segment.key)
        if damaged or _place(kept[0]) != _place(segment):
            raise SegmentCorrupt(segment.key, "what is kept is not what was put")
        return kept[1]

    def delete(self, key: bytes) -> None:
        """Remove the payload; no error when there is none."""
        with self._lock:
            self._kept.pop(key, None)
            self._damaged.discard(key)

    def quarantine(self, key: bytes) -> None:
        """Set the payload aside; no error when there is none."""
        with self._lock:
            if key in self._kept:
                self._aside.append(self._kept.pop(key)[1].nbytes)
                self._damaged.discard(key)
                while sum(self._aside) > self.quarantine_bytes:
                    del self._aside[0]

    def sweep(self, known: Iterable[bytes]) -> int:
        """Remove payloads of unknown keys."""
        with self._lock:
            lost = self._kept.keys() - set(known)
            for key in lost:
                del self._kept[key]
            self._damaged -= lost
        return len(lost)

    def nbytes(self) -> int:
        """Bytes of all payloads, quarantined ones included."""
        with self._lock:
            return self._taken()

    def damage(self, key: bytes) -> None:
        """Let the payload of `key` be found corrupt from now on, as after a disk error."""
        with self._lock:
            if key in self._kept:
                self._damaged.add(key)

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every payload is that of its segment."""
        for key, (segment, payload) in self._kept.items():
            if key != segment.key or payload.nbytes != segment.nbytes:
                raise IntegrityError(f"{segment} holds {payload.nbytes} bytes")
        if self._damaged - self._kept.keys() or sum(self._aside) > self.quarantine_bytes:
            raise IntegrityError("damage or quarantine without bounds")

    def close(self) -> None:
        """Nothing to stop."""

    def _bytes(self, key: bytes) -> int:
        return self._kept[key][1].nbytes if key in self._kept else 0

    def _taken(self) -> int:
        return sum(payload.nbytes for _, payload in self._kept.values()) + sum(self._aside)


def _place(segment: Segment) -> tuple[bytes, bytes | None, int, int, int]:
    """What may not change of a segment; its parent may be merged into another one."""
    return segment.root, segment.origin, segment.start, segment.stop, segment.nbytes
