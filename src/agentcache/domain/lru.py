"""Segmented LRU: one sweep of newcomers cannot flush those who keep coming back."""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

from attrs import define, field

from agentcache.domain.errors import IntegrityError

K = TypeVar("K")
PROTECTED_SHARE = 0.8


@define(eq=False)
class SegmentedLRU(Generic[K]):
    """Keys in the order in which they should leave.

    A key enters on probation and is protected from its second use on; probation leaves first, each
    part its least recently used first. Protection is for at most PROTECTED_SHARE of those that may
    leave: beyond it, the least recently used goes back on probation, so that who never returns
    does not stay for ever. A held key (held as often as `hold` was called) is in no order at all,
    so that finding the next to leave never walks over those that must stay.
    """

    _probation: "OrderedDict[K, None]" = field(factory=OrderedDict, init=False)
    _protected: "OrderedDict[K, None]" = field(factory=OrderedDict, init=False)
    _holds: "Counter[K]" = field(factory=Counter, init=False)
    _parked: dict[K, bool] = field(factory=dict, init=False)  # held keys: whether protected

    def __contains__(self, key: K) -> bool:
        return key in self._probation or key in self._protected or key in self._parked

    def __len__(self) -> int:
        return len(self._probation) + len(self._protected) + len(self._parked)

    def __iter__(self) -> Iterator[K]:
        """The keys that may leave, the first to leave first."""
        yield from self._probation
        yield from self._protected

    def add(self, key: K) -> None:
        """Let `key` enter, as the most recently used of those on probation."""
        if key in self:
            raise ValueError(f"{key!r} is there already")
        if self._holds[key]:
            self._parked[key] = False
        else:
            self._probation[key] = None

    def touch(self, key: K) -> None:
        """`key` was used again: it is protected from now on."""
        if key in self._parked:
            self._parked[key] = True
        elif key in self._probation or key in self._protected:
            self._probation.pop(key, None)
            self._protected[key] = None
            self._protected.move_to_end(key)
            self._demote()

    def refresh(self, key: K) -> None:
        """`key` is as recent as can be, without being protected for it."""
        for part in (self._probation, self._protected):
            if key in part:
                part.move_to_end(key)

    def discard(self, key: K) -> None:
        """Let `key` leave, wherever it is. Its holds stay."""
        self._probation.pop(key, None)
        self._protected.pop(key, None)
        self._parked.pop(key, None)

    def hold(self, key: K) -> None:
        """Keep `key` from leaving until it is released as often as it was held."""
        self._holds[key] += 1
        for part, protected in ((self._probation, False), (self._protected, True)):
            if key in part:
                del part[key]
                self._parked[key] = protected

    def release(self, key: K) -> None:
        """Undo one `hold`. The last one lets `key` return as most recently used."""
        if self._holds[key] < 1:
            raise ValueError(f"{key!r} is not held")
        self._holds[key] -= 1
        if self._holds[key]:
            return
        del self._holds[key]
        protected = self._parked.pop(key, None)
        if protected is not None:
            (self._protected if protected else self._probation)[key] = None
            self._demote()

    def held(self, key: K) -> bool:
        """Whether `key` is held."""
        return self._holds[key] > 0

    def holds(self, key: K) -> int:
        """How often `key` is held."""
        return self._holds[key]

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every key is where its holds say, and nowhere else."""
        free = self._probation.keys() | self._protected.keys()
        if len(free) + len(self._parked) != len(self) or free & self._parked.keys():
            raise IntegrityError("a key is in two places")
        if any(self._holds[key] for key in free) or not all(self._holds[k] for k in self._parked):
            raise IntegrityError("a held key may leave, or a free one may not")
        if any(count < 0 for count in self._holds.values()):
            raise IntegrityError("a key was released more often than held")

    def _demote(self) -> None:
        most = max(1, int(PROTECTED_SHARE * (len(self._probation) + len(self._protected))))
        while len(self._protected) > most:
            key, _ = self._protected.popitem(last=False)
            self._probation[key] = None
