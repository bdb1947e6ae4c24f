"""The block pool: capacity is granted all or nothing, and every block has one holder."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agentcache.domain.errors import IntegrityError
from agentcache.domain.pool import BLOCK_TOKENS, BlockPool, blocks_for

holders = st.integers(1, 3)


@given(st.integers(0, 10_000))
def test_blocks_for_tokens_are_enough_and_one_less_is_not(count: int) -> None:
    assert (blocks_for(count) - 1) * BLOCK_TOKENS < count <= blocks_for(count) * BLOCK_TOKENS


def test_a_grant_that_does_not_fit_grants_nothing() -> None:
    pool = BlockPool(3)
    assert pool.reserve(1, 2)
    assert not pool.reserve(2, 2)
    assert (pool.free, pool.held(1), pool.held(2)) == (1, 2, 0)


def test_a_grant_grows_and_is_released_as_a_whole() -> None:
    pool = BlockPool(5)
    pool.reserve(1, 2)
    pool.reserve(1, 3)
    assert pool.held(1) == 5
    assert pool.release(1) == 5
    assert (pool.free, dict(pool.granted)) == (5, {})


def test_releasing_what_was_never_granted_gives_nothing() -> None:
    assert BlockPool(2).release(7) == 0


def test_a_negative_number_of_blocks_cannot_be_asked_for_or_had() -> None:
    with pytest.raises(ValueError, match="-1"):
        BlockPool(2).reserve(1, -1)
    with pytest.raises(ValueError, match="total"):
        BlockPool(-1)


def test_the_view_of_grants_cannot_be_written() -> None:
    with pytest.raises(TypeError):
        BlockPool(2).granted[1] = 1  # type: ignore[index]


@pytest.mark.parametrize(("free", "granted"), [(1, {1: 2}), (-1, {1: 3}), (3, {1: -1})])
def test_blocks_that_do_not_add_up_are_noticed(free: int, granted: dict[int, int]) -> None:
    pool = BlockPool(2)
    pool._free = free
    pool._granted.update(granted)
    with pytest.raises(IntegrityError):
        pool.check_integrity()


class PoolMachine(RuleBasedStateMachine):
    """Against a dict of how much everybody should have."""

    @initialize(total=st.integers(0, 12))
    def start(self, total: int) -> None:
        self.pool, self.total = BlockPool(total), total
        self.model: dict[int, int] = {}

    @rule(holder=holders, blocks=st.integers(0, 6))
    def reserve(self, holder: int, blocks: int) -> None:
        fits = sum(self.model.values()) + blocks <= self.total
        assert self.pool.can_reserve(blocks) == fits
        assert self.pool.reserve(holder, blocks) == fits
        if fits:
            self.model[holder] = self.model.get(holder, 0) + blocks

    @rule(holder=holders)
    def release(self, holder: int) -> None:
        assert self.pool.release(holder) == self.model.pop(holder, 0)

    @invariant()
    def everybody_has_what_was_granted(self) -> None:
        self.pool.check_integrity()
        assert dict(self.pool.granted) == self.model
        assert self.pool.free == self.total - sum(self.model.values())


TestPool = PoolMachine.TestCase
