"""Pacing: a step beside those who decode takes no longer than it may, whatever things cost."""

from collections.abc import Callable
from itertools import pairwise

from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from agentcache.domain.pacing import LEAST_CHUNK, Pace

Cost = Callable[[int, int], float]  # tokens of a chunk, position of its first one: seconds


@frozen
class Affine:
    """What a chunk costs: `fixed` seconds and `each` a token."""

    fixed: float
    each: float

    def __call__(self, tokens: int, position: int) -> float:
        return self.fixed + self.each * tokens


@frozen
class Curved:
    """Attention makes later tokens dearer, and a device makes some steps slow for no reason."""

    base: Affine
    square: float
    late: float
    hiccups: tuple[float, ...]

    def __call__(self, tokens: int, position: int) -> float:
        usual = (
            self.base(tokens, position) + self.square * tokens**2 + self.late * tokens * position
        )
        return usual * self.hiccups[(position + tokens) % len(self.hiccups)]


seconds = st.floats(1e-6, 0.5)
affine = st.builds(Affine, st.floats(0, 0.3), st.floats(1e-6, 0.05))
curved = st.builds(
    Curved,
    affine,
    st.floats(0, 1e-3),
    st.floats(0, 1e-6),
    st.lists(st.sampled_from([1.0, 1.0, 3.0]), min_size=1, max_size=7).map(tuple),
)
longest = st.sampled_from([24, 128, 512, 1000])


def _chunks(
    pace: Pace, cost: Cost, most: int, decode: float, steps: int
) -> list[tuple[int, float]]:
    """The chunks of a long prefill beside somebody who decodes, and the seconds of their steps."""
    found, position = [], 0
    for _ in range(steps):
        size = pace.chunk(most)
        took = decode + cost(size, position)
        pace.learn([size], 1, took)
        position += size
        found.append((size, took))
    return found


@given(st.one_of(affine, curved), longest, st.floats(0, 0.2))
def test_after_a_step_that_took_too_long_the_next_chunk_is_half_as_long_at_most(
    cost: Cost, most: int, decode: float
) -> None:
    pace = Pace(0.25)
    pace.learn([], 1, decode)
    found = _chunks(pace, cost, most, decode, 40)
    for (size, took), (next_size, _) in pairwise(found):
        if took > pace.within:
            assert next_size <= max(size // 2, min(LEAST_CHUNK, most))
        assert next_size <= 2 * size


@given(affine, longest, st.floats(0, 0.2), st.integers(1, 600))
def test_the_chunk_settles_where_a_step_takes_no_longer_than_it_may(
    cost: Affine, most: int, decode: float, alone: int
) -> None:
    pace = Pace(0.25)
    pace.learn([], 1, decode)
    pace.learn([alone], 0, cost(alone, 0))  # a prompt that was prefilled while nobody decoded
    found = _chunks(pace, cost, most, decode, 60)
    settled = found[15:]
    changes = sum(size != later for (size, _), (later, _) in pairwise(settled))
    assert changes <= 1, "it goes up and down"  # one: the cost is the limit but for rounding
    assert all(took <= pace.within or size == LEAST_CHUNK for size, took in settled)


@given(st.floats(1e-6, 0.05), longest, st.floats(0, 0.2))
def test_the_chunk_is_as_long_as_the_time_allows(each: float, most: int, decode: float) -> None:
    pace = Pace(0.25)
    pace.learn([], 1, decode)
    size, _ = _chunks(pace, Affine(0, each), most, decode, 40)[-1]
    longer = [most >> n for n in range(10) if most >> n > max(size, LEAST_CHUNK)]
    assert all(each * one > 0.899 * (pace.within - decode) for one in longer)


def test_chunks_grow_again_when_steps_get_faster() -> None:
    pace = Pace(0.25)
    _chunks(pace, Affine(0, 0.01), 128, 0.0, 20)
    assert pace.chunk(128) == LEAST_CHUNK
    _chunks(pace, Affine(0, 0.001), 128, 0.0, 20)
    assert pace.chunk(128) == 128


def test_what_decode_costs_leaves_less_for_the_chunk() -> None:
    idle, busy = Pace(0.25), Pace(0.25)
    for pace, decode in ((idle, 0.0), (busy, 0.19)):
        pace.learn([], 8, decode)
        pace.learn([128], 0, 0.2)
    assert (idle.chunk(128), busy.chunk(128)) == (128, 32)


def test_nothing_is_known_before_a_step_was_measured() -> None:
    assert Pace(0.25).chunk(128) == 128


def test_a_limit_shorter_than_the_least_chunk_holds() -> None:
    pace = Pace(0.25)
    pace.learn([128], 1, 99.0)
    assert pace.chunk(7) == 7


@given(affine, st.lists(st.integers(1, 200), min_size=2, max_size=5), st.floats(0, 0.2))
def test_a_chunk_joins_others_only_where_the_step_stays_in_time(
    cost: Affine, sizes: list[int], decode: float
) -> None:
    pace = Pace(0.25)
    assert not pace.joins(1, sizes, 1), "nothing is known"
    pace.learn([], 1, decode)
    for one in (16, 128, 64):
        pace.learn([one], 0, cost(one, 0))
    *before, last = sizes
    took = decode + sum(cost(one, 0) for one in sizes)
    assert not pace.joins(last, before, 1) or took <= pace.within
    assert pace.joins(last, before, 1) or took >= 0.899 * (pace.within - decode)


@given(affine, st.lists(st.lists(st.integers(1, 200), min_size=1, max_size=4), min_size=4))
def test_what_a_chunk_costs_is_learnt_from_steps_of_several(
    cost: Affine, steps: list[list[int]]
) -> None:
    pace = Pace(0.25)
    for sizes in ([16], [128], [64, 64], *steps[-3:]):
        pace.learn(sizes, 0, sum(cost(one, 0) for one in sizes))
    if cost.fixed > 1e-3:
        assert abs(pace.seconds(100) - cost(100, 0)) <= 0.01 * cost(100, 0)
