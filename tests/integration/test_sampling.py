"""Sampling against its definition, on numpy and on MLX arrays alike."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from agentcache.domain.request import Sampling
from tests import tiny_models  # noqa: F401  (the BLAS, before MLX)

import mlx.core as mx  # isort: skip
from agentcache.adapters.mlx.sampling import Draw, choose  # isort: skip

Logits = NDArray[np.float32]
LIKELY = np.log(np.array([[0.5, 0.25, 0.125, 0.0625, 0.0625]], np.float32))
WAYS: dict[str, Callable[[Logits], Logits | mx.array]] = {"numpy": np.asarray, "mlx": mx.array}


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest) -> Callable[[Logits], Logits | mx.array]:
    return WAYS[request.param]


def drawn(
    way: Callable[[Logits], Logits | mx.array], sampling: Sampling, times: int = 400
) -> Counter[int]:
    """How often each token is drawn from LIKELY at as many positions."""
    draw = Draw(sampling, seed=3)
    choice = choose(way(LIKELY.repeat(times, axis=0)), [draw] * times, range(times))
    return Counter(int(token) for token in np.asarray(choice.tokens))


Way = Callable[[Logits], Logits | mx.array]


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(temperature=0), {0}),
        (Sampling(), {0, 1, 2, 3, 4}),
        (Sampling(top_k=1), {0}),
        (Sampling(top_k=2), {0, 1}),
        (Sampling(top_k=4), {0, 1, 2, 3, 4}),  # the fifth is as likely as the fourth
        (Sampling(top_k=99), {0, 1, 2, 3, 4}),
        (Sampling(top_p=0), {0}),
        (Sampling(top_p=0.5), {0}),
        (Sampling(top_p=0.51), {0, 1}),
        (Sampling(top_p=0.8), {0, 1, 2}),
        (Sampling(min_p=0.2), {0, 1, 2}),
        (Sampling(min_p=1), {0}),
        (Sampling(top_k=2, top_p=0.66), {0}),  # of the two, the first has two thirds
        (Sampling(temperature=0.5, top_p=0.75), {0, 1}),  # the first has 0.73 then
        (Sampling(temperature=1e-6), {0}),
    ],
    ids=str,
)
def test_what_may_be_drawn(way: Way, sampling: Sampling, kept: set[int]) -> None:
    assert set(drawn(way, sampling)) == kept


def test_tokens_are_drawn_as_often_as_they_are_likely(way: Way) -> None:
    counts = drawn(way, Sampling(), 4000)
    expected = np.exp(LIKELY[0]) * 4000
    for token, count in counts.items():
        assert abs(count - expected[token]) < 4 * np.sqrt(expected[token])


def test_the_temperature_flattens(way: Way) -> None:
    hot, cold = (drawn(way, Sampling(temperature=one), 4000)[0] for one in (2.0, 0.5))
    assert 4000 * 0.30 < hot < 4000 * 0.42
    assert 4000 * 0.68 < cold < 4000 * 0.78


_ROWS = arrays(np.float32, (4, 30), elements=st.floats(-20, 20, width=32))
_SAMPLINGS = st.lists(
    st.builds(
        Sampling,
        temperature=st.sampled_from([0, 0.5, 1, 3]),
        top_p=st.sampled_from([0.3, 0.9, 1]),
        top_k=st.sampled_from([0, 1, 5]),
        min_p=st.sampled_from([0, 0.1]),
        seed=st.integers(-5, 5),
    ),
    min_size=4,
    max_size=4,
)


@given(rows=_ROWS, samplings=_SAMPLINGS)
@pytest.mark.parametrize("kind", WAYS)
def test_a_row_is_drawn_the_same_alone_and_among_others(
    kind: str, rows: Logits, samplings: list[Sampling]
) -> None:
    draws = [Draw.of(sampling) for sampling in samplings]
    together = choose(WAYS[kind](rows), draws, [5, 6, 7, 8])
    for n, draw in enumerate(draws):
        alone = choose(WAYS[kind](rows[n : n + 1]), [draw], [5 + n])
        assert np.asarray(alone.tokens)[0] == np.asarray(together.tokens)[n]


def test_the_position_and_the_seed_decide_what_is_drawn() -> None:
    numbers = {Draw.of(Sampling(seed=seed)).uniform(at) for seed in range(9) for at in range(9)}
    assert len(numbers) == 81
    assert all(0 <= number < 1 for number in numbers)


def test_without_a_seed_every_sequence_has_its_own() -> None:
    assert Draw.of(Sampling()).seed != Draw.of(Sampling()).seed


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(top_p=0.9)], ids=str)
def test_a_row_is_unusable_when_its_best_logit_is_not_finite(way: Way, sampling: Sampling) -> None:
    rows = np.zeros((5, 3), np.float32)
    rows[1, 2] = np.nan
    rows[2, 0] = np.inf
    rows[3] = -np.inf
    rows[4, 1] = -np.inf
    choice = choose(way(rows), [Draw(sampling, 1)] * 5, range(5))
    assert np.asarray(choice.usable).tolist() == [True, False, False, False, True]


def test_what_a_model_rules_out_is_never_drawn(way: Way) -> None:
    rows = np.zeros((200, 4), np.float32)
    rows[:, 2] = -np.inf
    choice = choose(way(rows), [Draw(Sampling(), 1)] * 200, range(200))
    assert set(np.asarray(choice.tokens).tolist()) == {0, 1, 3}
