"""The port to the encodings of rows."""

from typing import Protocol

from agentcache.domain.spec import CacheSpec
from agentcache.ports.payload import Payload
from agentcache.ports.rows import Rows


class Codec(Protocol):
    """Encodes rows, each by itself: encoding [a, c) gives the bytes of [a, b) then of [b, c).

    Stateless and safe to call from any thread.
    """

    @property
    def name(self) -> str:
        """The codec's name, part of the lineage root: `native`, `q8`, ..."""
        ...

    def nbytes(self, spec: CacheSpec, rows: int) -> int:
        """Bytes that `rows` finite rows of the full layers of `spec` take when encoded."""
        ...

    def encode(self, spec: CacheSpec, rows: Rows) -> Payload:
        """Copy and encode `rows`; nothing of the payload shares memory with them."""
        ...

    def decode(self, spec: CacheSpec, payload: Payload, out: Rows) -> None:
        """Decode the first `out.stop - out.start` rows of `payload` into the arrays of `out`.

        `out` may hold views of a larger buffer. Window and state arrays are decoded where `out` has
        them (only when it asks for all rows). Raises ValueError when the payload's tensors, dtypes
        or shapes are not those that `spec` calls for: nothing that was decoded may be used then.
        """
        ...
