"""The block pool: who holds how much of the KV memory. It grants capacity; it owns no arrays."""

from collections.abc import Mapping
from types import MappingProxyType

from attrs import define, field
from attrs.validators import ge

from agentcache.domain.errors import IntegrityError

BLOCK_TOKENS = 256


def blocks_for(tokens: int) -> int:
    """How many blocks it takes to hold `tokens` rows."""
    return -(-tokens // BLOCK_TOKENS)


@define(eq=False)
class BlockPool:
    """`total` blocks of BLOCK_TOKENS rows each, granted to numbered sequences, all or nothing.

    Nothing is shared here: every block has one holder. A holder's grant grows, and is released as
    a whole.
    """

    total: int = field(validator=ge(0))
    _granted: dict[int, int] = field(factory=dict, init=False)
    _free: int = field(init=False)

    @_free.default
    def _all_free(self) -> int:
        return self.total

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return self._free

    @property
    def granted(self) -> Mapping[int, int]:
        """Blocks by holder, a read-only view."""
        return MappingProxyType(self._granted)

    def held(self, holder: int) -> int:
        """Blocks that `holder` has."""
        return self._granted.get(holder, 0)

    def can_reserve(self, blocks: int) -> bool:
        """Whether `blocks` more could be granted at once."""
        return blocks <= self._free

    def reserve(self, holder: int, blocks: int) -> bool:
        """Grant `blocks` more to `holder`, or nothing at all. Returns whether it was granted."""
        if blocks < 0:
            raise ValueError(f"cannot reserve {blocks} blocks")
        if not self.can_reserve(blocks):
            return False
        self._free -= blocks
        self._granted[holder] = self._granted.get(holder, 0) + blocks
        return True

    def release(self, holder: int) -> int:
        """Take back all that `holder` has; returns how many blocks that was."""
        blocks = self._granted.pop(holder, 0)
        self._free += blocks
        return blocks

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every block is either free or granted, exactly once."""
        if any(blocks < 0 for blocks in self._granted.values()):
            raise IntegrityError(f"a negative grant: {self._granted}")
        if self._free < 0 or self._free + sum(self._granted.values()) != self.total:
            raise IntegrityError(
                f"{self._free} free and {sum(self._granted.values())} granted of {self.total}"
            )
