"""The port to where encoded segments are kept for good."""

from collections.abc import Iterable
from typing import Protocol

from agentcache.domain.segment import Segment
from agentcache.ports.payload import Payload


class SegmentStore(Protocol):
    """Keeps payloads by segment key. A payload is wholly there or not at all, also after a crash.

    `read` and `nbytes` are called from any thread, everything else from one.
    """

    def put(self, segment: Segment, payload: Payload) -> int:
        """Keep `payload` durably; return the bytes it takes where it is kept.

        Putting a key again replaces it by the same content. Raises StoreFull (nothing is left
        behind) or OSError; ValueError when `payload` is not what `segment` says (`require_match`).
        """
        ...

    def read(self, segment: Segment) -> Payload:
        """The payload of `segment`, verified against its checksum and against `segment`.

        Raises SegmentMissing, SegmentCorrupt, or SegmentUnusable when it cannot be read now; never
        returns anything doubtful.
        """
        ...

    def delete(self, key: bytes) -> None:
        """Remove the payload; no error when there is none."""
        ...

    def quarantine(self, key: bytes) -> None:
        """Set a corrupt payload aside, where it is kept for inspection within the store's cap."""
        ...

    def sweep(self, known: Iterable[bytes]) -> int:
        """Remove every payload whose key is not in `known`, and all leftovers; return how many."""
        ...

    def nbytes(self) -> int:
        """Bytes taken by all payloads, quarantined ones included."""
        ...


def require_match(segment: Segment, payload: Payload) -> None:
    """Raise ValueError unless `payload` has the rows and the bytes of `segment`."""
    if (payload.rows, payload.nbytes) != (len(segment), segment.nbytes):
        raise ValueError(
            f"a payload of {payload.rows} rows in {payload.nbytes} bytes is not that of a segment "
            f"of {len(segment)} rows in {segment.nbytes} bytes"
        )
