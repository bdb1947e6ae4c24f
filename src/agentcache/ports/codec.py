"""The port to the encodings of rows."""

from collections.abc import Sequence
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
        """Bytes that `rows` finite rows of the full layers of `spec` take when encoded.

        A sequence's first row may take more.
        """
        ...

    def encode(self, spec: CacheSpec, rows: Rows) -> Payload:
        """Copy and encode `rows`; nothing of the payload shares memory with them.

        Window and state arrays are encoded where `rows` has them. Raises ValueError when the
        arrays are not those that `spec` calls for.
        """
        ...

    def decode(self, spec: CacheSpec, payload: Payload, out: Rows, first: int = 0) -> None:
        """Decode the rows of `payload` from its row `first` on into the arrays of `out`.

        As many rows as `out` has; its arrays may be views of a larger buffer, so that several
        threads can decode parts of one payload (`Rows.part`). Window and state arrays are decoded
        where `out` has them, which takes an `out` that goes to the payload's end; of a window the
        last rows, as many as fit. Raises ValueError when the payload's tensors, dtypes or shapes
        are not those that `spec` and `out` call for: nothing that was decoded may be used then.
        """
        ...

    def join(self, spec: CacheSpec, parts: Sequence[tuple[Payload, int]]) -> Payload:
        """The payload of neighbours, of each its first so many rows.

        The last one is taken whole unless `spec` has full layers alone.

        The bytes are those that there are: nothing is decoded. Window rows and state arrays are as
        they are at the end of the last one. Raises ValueError when a payload is not what `spec`
        calls for.
        """
        ...
