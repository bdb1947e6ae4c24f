"""What the engine asks of one sequence's caches, wherever they keep their rows."""

from collections.abc import Sequence
from typing import Protocol

from agentcache.adapters.mlx.arrays import ArrayLeaf
from agentcache.adapters.mlx.buffers import BufferLeaf
from agentcache.ports.rows import Rows

Leaf = BufferLeaf | ArrayLeaf


class LiveCache(Protocol):
    """The caches of one sequence, one for every leaf of the model's."""

    capacity: int

    @property
    def leaves(self) -> Sequence[Leaf]:
        """The caches in the model's order."""
        ...

    @property
    def length(self) -> int:
        """Rows that are there."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes held, slack included."""
        ...

    def blank(self, count: int) -> Rows:
        """Writable rows [0, count), to be filled and then adopted."""
        ...

    def adopt(self, length: int) -> None:
        """Continue after the first `length` of the blank rows, which are filled by now."""
        ...

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` rows in all. Raises MemoryError and changes nothing."""
        ...

    def rewind(self, length: int) -> None:
        """Forget all rows from `length` on, also where only some of the leaves have them."""
        ...

    def rows(self, start: int, stop: int) -> Rows:
        """The rows [start, stop)."""
        ...

    def settle(self) -> None:
        """Start to compute the rows that are still lazy."""
        ...
