"""The hot tier: live sequences, running or resting, and the blocks that they hold."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator

from attrs import define, field

from agentcache.domain.errors import IntegrityError
from agentcache.domain.pool import BLOCK_TOKENS, BlockPool, blocks_for
from agentcache.domain.segment import Segment
from agentcache.domain.session import SessionKey
from agentcache.domain.tokens import Tokens
from agentcache.domain.turn import Sequence

_MOST_TOKENS = 1 << 31


@define(eq=False)
class HotTier:
    """All live sequences of the engine.

    Everything that a resting sequence holds is in the lineage too, so it gives way at once, the
    longest at rest first, when somebody needs its blocks. `dropped` collects those that gave way
    until `take_dropped` is called, `gave_way` counts those that had to, and their blocks.

    `price` is how many blocks a sequence takes that has room for so many tokens, more for more of
    them. `capacity` is the room of the longest sequence that could ever be held, in tokens.
    """

    pool: BlockPool
    price: Callable[[int], int] = blocks_for
    capacity: int = field(init=False)
    _live: dict[int, Sequence] = field(factory=dict, init=False)
    _resting: "OrderedDict[int, Sequence]" = field(factory=OrderedDict, init=False)
    _by_owner: dict[SessionKey, Sequence] = field(factory=dict, init=False)
    gave_way: int = field(default=0, init=False)
    blocks_given: int = field(default=0, init=False)
    dropped: list[int] = field(factory=list, init=False)
    _resting_blocks: int = field(default=0, init=False)
    _last_number: int = field(default=0, init=False)

    @capacity.default
    def _longest(self) -> int:
        counts = range(1, _MOST_TOKENS // BLOCK_TOKENS)
        return BLOCK_TOKENS * bisect_right(
            counts, self.pool.total, key=lambda count: self.price(count * BLOCK_TOKENS)
        )

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._live.values())

    def resting(self, owner: SessionKey | None) -> Sequence | None:
        """The sequence that the last turn of `owner` left behind."""
        found = self._by_owner.get(owner) if owner else None
        return found if found and found.number in self._resting else None

    def make(self, root: bytes, ids: "Tokens[int]", capacity: int) -> Sequence | None:
        """A new sequence with room for `capacity` tokens; None when there is no room."""
        capacity = _rounded(capacity)
        blocks = self.price(capacity)
        if not self._make_room(blocks, sparing=None):
            return None
        self._last_number += 1
        sequence = Sequence(self._last_number, root, ids, capacity)
        self.pool.reserve(sequence.number, blocks)
        self._live[sequence.number] = sequence
        return sequence

    def enlarge(self, sequence: Sequence, capacity: int) -> bool:
        """Grant `sequence` room for `capacity` tokens in all; False when there is none."""
        capacity = _rounded(capacity)
        more = self.price(capacity) - self.pool.held(sequence.number)
        if more > 0:
            if not self._make_room(more, sparing=sequence):
                return False
            self.pool.reserve(sequence.number, more)
            self._resting_blocks += more if sequence.number in self._resting else 0
        sequence.capacity = max(sequence.capacity, capacity)
        return True

    def wake(self, sequence: Sequence) -> None:
        """A turn takes the resting `sequence` over."""
        del self._resting[sequence.number]
        self._resting_blocks -= self.pool.held(sequence.number)

    def rest(self, sequence: Sequence, owner: SessionKey | None) -> None:
        """The turn on `sequence` is over: it rests, for the next turn of `owner` to take over."""
        before = self.resting(owner)
        if before is not None and before is not sequence:
            self.drop(before)
        self._disown(sequence)
        sequence.owner = owner
        if owner is None:
            self.drop(sequence)
            return
        self._by_owner[owner] = sequence
        self._resting[sequence.number] = sequence
        self._resting_blocks += self.pool.held(sequence.number)

    def doubt(self, segments: Iterable[Segment]) -> None:
        """Sequences that were restored from these are of no use to anybody else: those at rest are
        forgotten, of those that run nothing more is kept.
        """
        keys = {one.key for one in segments}
        for sequence in [one for one in self if one.sources & keys]:
            sequence.sound = False
            if sequence.number in self._resting:
                self.drop(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Forget `sequence` and take its blocks back."""
        del self._live[sequence.number]
        was_resting = self._resting.pop(sequence.number, None) is not None
        self._disown(sequence)
        blocks = self.pool.release(sequence.number)
        self._resting_blocks -= blocks if was_resting else 0
        self.dropped.append(sequence.number)

    def drop_resting(self) -> None:
        """Forget every sequence that rests."""
        for sequence in tuple(self._resting.values()):
            self.drop(sequence)

    def take_dropped(self) -> tuple[int, ...]:
        """The sequences dropped since the last call: the engine shall drop them too."""
        dropped, self.dropped = tuple(self.dropped), []
        return dropped

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every live sequence holds what it says, and nobody else."""
        self.pool.check_integrity()
        if set(self.pool.granted) != set(self._live):
            raise IntegrityError("blocks are held by sequences that are not live")
        for number, sequence in self._live.items():
            if self.pool.held(number) != self.price(sequence.capacity):
                raise IntegrityError(f"sequence {number} does not hold its capacity")
            if not 0 <= sequence.kept <= sequence.rows <= sequence.planned <= sequence.capacity:
                raise IntegrityError(f"sequence {number} counts its rows wrongly")
            if sequence.rows > len(sequence.ids):
                raise IntegrityError(f"sequence {number} has rows of unknown tokens")
        if any(self._live.get(number) is not one for number, one in self._resting.items()):
            raise IntegrityError("a sequence rests that is not live")
        if self._resting_blocks != sum(map(self.pool.held, self._resting)):
            raise IntegrityError("the blocks of those at rest are counted wrongly")
        if any(self.resting(one.owner) is not one for one in self._resting.values()):
            raise IntegrityError("a sequence rests where nobody finds it")
        if any(one.owner != owner for owner, one in self._by_owner.items()):
            raise IntegrityError("a sequence is filed under a session that does not own it")

    def check_awake(self, numbers: Collection[int]) -> None:
        """Raise IntegrityError unless these sequences, and no others, are live and not at rest."""
        if sorted(numbers) != sorted(self._live.keys() - self._resting.keys()):
            raise IntegrityError("turns and live sequences are not paired")

    def _make_room(self, blocks: int, sparing: Sequence | None) -> bool:
        rests = sparing is not None and sparing.number in self._resting
        spared = self.pool.held(sparing.number) if sparing and rests else 0
        if self.pool.free + self._resting_blocks - spared < blocks:
            return False
        while not self.pool.can_reserve(blocks):
            giver = next(one for one in self._resting.values() if one is not sparing)
            self.gave_way += 1
            self.blocks_given += self.pool.held(giver.number)
            self.drop(giver)
        return True

    def _disown(self, sequence: Sequence) -> None:
        if sequence.owner is not None and self._by_owner.get(sequence.owner) is sequence:
            del self._by_owner[sequence.owner]


def _rounded(tokens: int) -> int:
    """Room is given by whole blocks of tokens."""
    return blocks_for(tokens) * BLOCK_TOKENS
