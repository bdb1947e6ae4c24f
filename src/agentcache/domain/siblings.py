"""Siblings: the segments that leave one parent at one row, found by what a prompt says there."""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator

from attrs import define, field

from agentcache.domain.segment import Segment
from agentcache.domain.tokens import Tokens


@define(eq=False)
class Siblings:
    """Found by their first `least` tokens, all of them where they have fewer: however many agents
    begin with the same words of a template, those that a prompt agrees with are few.

    A segment of which others part sooner (`parts_early`) is looked at in any case.
    """

    least: int
    _by_head: dict[bytes, list[bytes]] = field(factory=dict, init=False)
    _heads: list[bytes] = field(factory=list, init=False)  # those of _by_head, in order
    _lengths: "Counter[int]" = field(factory=Counter, init=False)
    _early: dict[bytes, int] = field(factory=dict, init=False)  # key -> its first token

    def __bool__(self) -> bool:
        return bool(self._by_head)

    def __iter__(self) -> Iterator[bytes]:
        return (key for keys in self._by_head.values() for key in keys)

    def add(self, segment: Segment) -> None:
        """`segment` is one of them."""
        head = self._head(segment.ids, 0)
        if head not in self._by_head:
            insort(self._heads, head)
            self._by_head[head] = []
        self._by_head[head].append(segment.key)
        self._lengths[len(head)] += 1

    def remove(self, segment: Segment) -> None:
        """`segment` is none of them any more."""
        head = self._head(segment.ids, 0)
        self._by_head[head].remove(segment.key)
        if not self._by_head[head]:
            del self._by_head[head]
            del self._heads[bisect_left(self._heads, head)]
        self._lengths[len(head)] -= 1
        if not self._lengths[len(head)]:
            del self._lengths[len(head)]
        self._early.pop(segment.key, None)

    def parts_early(self, segment: Segment, early: bool) -> None:
        """Whether others leave `segment` within its first `least` rows."""
        if early:
            self._early[segment.key] = segment.ids[0]
        else:
            self._early.pop(segment.key, None)

    def agreeing(self, ids: "Tokens[int]", row: int) -> dict[bytes, None]:
        """Keys of those that may be worth going on with for a prompt that says `ids` from `row` on.

        Of several that all hold the whole rest of the prompt, and more, one.
        """
        found: dict[bytes, None] = {}
        head = self._head(ids, row)
        for length in self._lengths:
            found.update(dict.fromkeys(self._by_head.get(head[:length], ())))
        if len(ids) - row < self.least:
            at = bisect_left(self._heads, head)
            if at < len(self._heads) and self._heads[at].startswith(head):
                found[self._by_head[self._heads[at]][0]] = None
        found.update((key, None) for key, first in self._early.items() if first == ids[row])
        return found

    def _head(self, ids: "Tokens[int]", row: int) -> bytes:
        return ids[row : row + self.least].tobytes()
