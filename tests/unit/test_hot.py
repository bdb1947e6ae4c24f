"""The hot tier: who lives in the engine, and who gives way."""

import pytest

from agentcache.domain.errors import IntegrityError
from agentcache.domain.hot import HotTier
from agentcache.domain.pool import BLOCK_TOKENS, BlockPool
from agentcache.domain.session import SessionKey
from agentcache.domain.tokens import tokens
from agentcache.domain.turn import Sequence

ROOT = b"r" * 32
ADA, BOB = (SessionKey("default", ROOT, name) for name in ("ada", "bob"))


def _make(hot: HotTier, blocks: int) -> Sequence:
    sequence = hot.make(ROOT, tokens([1]), blocks * BLOCK_TOKENS)
    assert sequence is not None
    return sequence


def _resting(hot: HotTier, blocks: int, owner: SessionKey) -> Sequence:
    sequence = _make(hot, blocks)
    hot.rest(sequence, owner)
    return sequence


def test_a_sequence_gets_whole_blocks_and_a_number_of_its_own() -> None:
    hot = HotTier(BlockPool(4))
    one, other = hot.make(ROOT, tokens([1]), 257), hot.make(ROOT, tokens([1]), 1)
    assert one is not None
    assert other is not None
    assert (one.capacity, other.capacity) == (512, 256)
    assert one.number != other.number
    assert hot.pool.free == 1
    assert list(hot) == [one, other]
    assert hot.capacity == 1024


def test_without_room_nothing_is_made_and_nobody_gives_way() -> None:
    hot = HotTier(BlockPool(3))
    _make(hot, 1)
    resting = _resting(hot, 1, ADA)
    assert hot.make(ROOT, tokens([1]), 3 * BLOCK_TOKENS) is None
    assert hot.resting(ADA) is resting
    assert hot.take_dropped() == ()


def test_the_longest_at_rest_gives_way_first_and_no_more_than_needed() -> None:
    hot = HotTier(BlockPool(3))
    first, second = _resting(hot, 1, ADA), _resting(hot, 1, BOB)
    _make(hot, 2)
    assert hot.take_dropped() == (first.number,)
    assert hot.take_dropped() == ()
    assert hot.resting(BOB) is second
    assert hot.resting(ADA) is None


def test_growing_spares_the_one_that_grows_and_takes_from_those_at_rest() -> None:
    hot = HotTier(BlockPool(3))
    growing, _ = _make(hot, 1), _resting(hot, 2, ADA)
    assert hot.enlarge(growing, 2 * BLOCK_TOKENS)
    assert growing.capacity == 2 * BLOCK_TOKENS
    assert hot.resting(ADA) is None
    hot.check_integrity()


def test_a_resting_sequence_that_grows_does_not_give_way_to_itself() -> None:
    hot = HotTier(BlockPool(3))
    resting = _resting(hot, 2, ADA)
    assert hot.enlarge(resting, 3 * BLOCK_TOKENS)
    assert not hot.enlarge(resting, 4 * BLOCK_TOKENS)
    assert hot.resting(ADA) is resting


def test_growth_beyond_all_memory_changes_nothing() -> None:
    hot = HotTier(BlockPool(2))
    growing = _make(hot, 1)
    assert not hot.enlarge(growing, 3 * BLOCK_TOKENS)
    assert growing.capacity == BLOCK_TOKENS
    hot.check_integrity()


def test_room_that_is_there_already_is_not_granted_again() -> None:
    hot = HotTier(BlockPool(2))
    growing = _make(hot, 1)
    assert hot.enlarge(growing, 10)
    assert growing.capacity == BLOCK_TOKENS


def test_a_turn_takes_over_what_the_last_one_left() -> None:
    hot = HotTier(BlockPool(2))
    resting = _resting(hot, 1, ADA)
    hot.wake(resting)
    assert hot.resting(ADA) is None
    assert list(hot) == [resting]
    hot.rest(resting, ADA)
    assert hot.resting(ADA) is resting


def test_an_owner_has_one_sequence_at_rest_the_last_one() -> None:
    hot = HotTier(BlockPool(4))
    first, second = _make(hot, 1), _make(hot, 1)
    hot.rest(first, ADA)
    hot.rest(second, ADA)
    assert hot.resting(ADA) is second
    assert hot.take_dropped() == (first.number,)
    hot.check_integrity()


def test_a_sequence_may_change_its_owner() -> None:
    hot = HotTier(BlockPool(4))
    resting = _resting(hot, 1, ADA)
    hot.wake(resting)
    hot.rest(resting, BOB)
    assert hot.resting(ADA) is None
    assert hot.resting(BOB) is resting
    hot.check_integrity()


def test_what_belongs_to_nobody_does_not_rest() -> None:
    hot = HotTier(BlockPool(1))
    sequence = _make(hot, 1)
    hot.rest(sequence, None)
    assert hot.take_dropped() == (sequence.number,)
    assert hot.pool.free == 1
    assert hot.resting(None) is None


def test_all_that_rests_can_be_dropped_at_once() -> None:
    hot = HotTier(BlockPool(3))
    running, one, other = _make(hot, 1), _resting(hot, 1, ADA), _resting(hot, 1, BOB)
    hot.drop_resting()
    assert hot.take_dropped() == (one.number, other.number)
    assert list(hot) == [running]


@pytest.mark.parametrize(
    "damage", ["grant", "capacity", "kept", "rows", "unknown", "resting", "owner", "unreachable"]
)
def test_damage_is_noticed(damage: str) -> None:
    hot = HotTier(BlockPool(3))
    sequence = _resting(hot, 1, ADA)
    if damage == "grant":
        hot.pool.reserve(9, 1)
    elif damage == "capacity":
        sequence.capacity += 1
    elif damage == "kept":
        sequence.kept = 1
    elif damage == "rows":
        sequence.rows = 1
    elif damage == "unknown":
        sequence.rows = sequence.planned = 2
    elif damage == "resting":
        hot._resting[9] = Sequence(9, ROOT, tokens(), 0)
    elif damage == "owner":
        hot.wake(sequence)
        sequence.owner = BOB
    else:
        hot._by_owner.clear()
    with pytest.raises(IntegrityError):
        hot.check_integrity()


def test_a_sequence_takes_blocks_by_its_price_not_by_its_tokens() -> None:
    """A block each for up to 1,024 tokens, as where most layers are windows."""
    hot = HotTier(BlockPool(3), price=lambda tokens: -(-tokens // 1024))
    assert hot.capacity == 3 * 1024
    first = hot.make(ROOT, tokens([1]), 300)
    assert first is not None
    assert (first.capacity, hot.pool.free) == (512, 2)
    assert hot.enlarge(first, 1000)
    assert (first.capacity, hot.pool.free) == (1024, 2)
    assert hot.make(ROOT, tokens([2]), 2049) is None
    assert hot.make(ROOT, tokens([2]), 2048) is not None
    hot.check_integrity()


def test_where_tokens_add_nothing_a_sequence_has_room_for_any_number() -> None:
    hot = HotTier(BlockPool(2), price=lambda _: 1)
    assert hot.capacity > 1_000_000
    assert hot.make(ROOT, tokens([1]), 500_000) is not None
    assert hot.pool.free == 1
    hot.check_integrity()
