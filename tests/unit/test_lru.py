"""The segmented LRU: who leaves first, and who does not leave at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agentcache.domain.errors import IntegrityError
from agentcache.domain.lru import PROTECTED_SHARE, SegmentedLRU


def _lru(keys: str) -> "SegmentedLRU[str]":
    lru: SegmentedLRU[str] = SegmentedLRU()
    for key in keys:
        lru.add(key)
    return lru


def test_who_entered_first_leaves_first() -> None:
    assert "".join(_lru("abc")) == "abc"


def test_one_sweep_of_newcomers_does_not_flush_those_who_came_back() -> None:
    lru = _lru("ab")
    lru.touch("a")
    for key in "0123456789":
        lru.add(key)
    assert "".join(lru) == "b0123456789a"


def test_protection_is_for_a_share_of_all_and_the_least_recently_used_loses_it() -> None:
    lru = _lru("abcde")
    for key in "abcde":
        lru.touch(key)
    assert "".join(lru) == "abcde"
    lru.add("f")
    assert "".join(lru) == "afbcde"


def test_refreshing_makes_recent_but_does_not_protect() -> None:
    lru = _lru("abc")
    lru.refresh("a")
    lru.touch("b")
    lru.refresh("b")
    assert "".join(lru) == "cab"
    lru.add("d")
    assert "".join(lru) == "cadb"


def test_a_held_key_is_not_among_those_that_may_leave_until_its_last_release() -> None:
    lru = _lru("ab")
    lru.hold("a")
    lru.hold("a")
    lru.release("a")
    assert "".join(lru) == "b"
    assert lru.held("a")
    assert "a" in lru
    assert len(lru) == 2
    lru.release("a")
    assert "".join(lru) == "ba"
    assert not lru.held("a")


def test_use_while_held_protects_afterwards() -> None:
    lru = _lru("abcdef")
    lru.hold("a")
    lru.touch("a")
    lru.release("a")
    lru.add("g")
    assert "".join(lru) == "bcdefga"


def test_protection_outlives_being_held() -> None:
    lru = _lru("ab")
    lru.touch("a")
    lru.hold("a")
    lru.release("a")
    lru.add("c")
    assert "".join(lru) == "bca"


def test_holds_stay_when_the_key_leaves_and_count_when_it_returns() -> None:
    lru = _lru("a")
    lru.hold("a")
    lru.discard("a")
    assert "a" not in lru
    lru.add("a")
    assert list(lru) == []
    lru.release("a")
    assert list(lru) == ["a"]


def test_a_key_may_be_held_before_it_is_there_at_all() -> None:
    lru = _lru("")
    lru.hold("a")
    lru.release("a")
    assert len(lru) == 0
    assert "a" not in lru


def test_a_key_cannot_enter_twice_nor_be_released_unheld() -> None:
    lru = _lru("a")
    with pytest.raises(ValueError, match="there already"):
        lru.add("a")
    with pytest.raises(ValueError, match="not held"):
        lru.release("a")


def test_touching_and_refreshing_strangers_changes_nothing() -> None:
    lru = _lru("a")
    lru.touch("x")
    lru.refresh("x")
    lru.discard("x")
    assert list(lru) == ["a"]


@given(st.lists(st.tuples(st.sampled_from(["add", "touch"]), st.integers(0, 9))))
def test_at_most_the_share_is_protected(steps: list[tuple[str, int]]) -> None:
    lru: SegmentedLRU[int] = SegmentedLRU()
    for what, key in steps:
        if what == "touch":
            lru.touch(key)
        elif key not in lru:
            lru.add(key)
        assert len(lru._protected) <= max(1, int(PROTECTED_SHARE * len(lru)))


@pytest.mark.parametrize("damage", ["two places", "held but free", "free but parked", "count"])
def test_damage_is_noticed(damage: str) -> None:
    lru = _lru("ab")
    if damage == "two places":
        lru._protected["a"] = None
    elif damage == "held but free":
        lru._holds["a"] = 1
    elif damage == "free but parked":
        del lru._probation["a"]
        lru._parked["a"] = True
    else:
        lru._holds["x"] = -1
    with pytest.raises(IntegrityError):
        lru.check_integrity()


class LRUMachine(RuleBasedStateMachine):
    """Against two plain lists and a count of holds."""

    keys = st.integers(0, 6)

    def __init__(self) -> None:
        super().__init__()
        self.lru: SegmentedLRU[int] = SegmentedLRU()
        self.probation: list[int] = []
        self.protected: list[int] = []
        self.kept: dict[int, bool] = {}
        self.holds: dict[int, int] = dict.fromkeys(range(7), 0)

    @rule(key=keys)
    def add(self, key: int) -> None:
        if key in self._all():
            return
        self.lru.add(key)
        if self.holds[key]:
            self.kept[key] = False
        else:
            self.probation.append(key)

    @rule(key=keys)
    def touch(self, key: int) -> None:
        self.lru.touch(key)
        if key in self.kept:
            self.kept[key] = True
        elif key in self._all():
            self._take_out(key)
            self.protected.append(key)
            self._demote()

    @rule(key=keys)
    def refresh(self, key: int) -> None:
        self.lru.refresh(key)
        for part in (self.probation, self.protected):
            if key in part:
                part.append(part.pop(part.index(key)))

    @rule(key=keys)
    def discard(self, key: int) -> None:
        self.lru.discard(key)
        self._take_out(key)
        self.kept.pop(key, None)

    @rule(key=keys)
    def hold(self, key: int) -> None:
        self.lru.hold(key)
        self.holds[key] += 1
        if key in self.probation or key in self.protected:
            self.kept[key] = key in self.protected
            self._take_out(key)

    @rule(key=keys)
    def release(self, key: int) -> None:
        if not self.holds[key]:
            return
        self.lru.release(key)
        self.holds[key] -= 1
        if not self.holds[key] and key in self.kept:
            (self.protected if self.kept.pop(key) else self.probation).append(key)
            self._demote()

    @invariant()
    def the_order_is_that_of_the_lists(self) -> None:
        self.lru.check_integrity()
        assert list(self.lru) == self.probation + self.protected
        assert {key for key in range(7) if key in self.lru} == self._all()
        assert len(self.lru) == len(self._all())
        assert all(self.lru.held(key) == (count > 0) for key, count in self.holds.items())

    def _all(self) -> set[int]:
        return {*self.probation, *self.protected, *self.kept}

    def _take_out(self, key: int) -> None:
        for part in (self.probation, self.protected):
            if key in part:
                part.remove(key)

    def _demote(self) -> None:
        free = len(self.probation) + len(self.protected)
        while len(self.protected) > max(1, int(0.8 * free)):
            self.probation.append(self.protected.pop(0))


TestLRU = LRUMachine.TestCase
