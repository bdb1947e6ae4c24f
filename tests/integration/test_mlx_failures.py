"""What fails in the MLX engine fails alone, and leaves every row as it was."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from agentcache.domain.errors import IntegrityError
from agentcache.domain.plan import PrefillChunk, Sampled
from agentcache.domain.tokens import tokens
from agentcache.testing.driving import GREEDY, Driver, copied, same_bits
from tests.tiny_models import tiny_llama

import mlx.core as mx  # isort: skip  (after the BLAS)
from mlx_lm.models.llama import LlamaModel  # isort: skip

from agentcache.adapters.mlx.arrays import ArrayLeaf  # isort: skip
from agentcache.adapters.mlx.engine import MLXEngine  # isort: skip

HISTORY = [13 * n % 250 + 3 for n in range(45)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), seed=3)


@pytest.fixture(params=[True, False], ids=["numpy buffers", "mlx caches"])
def driver(request: pytest.FixtureRequest, folder: Path) -> Iterator[Driver]:
    engine = MLXEngine.load(folder, b"tiny", "tiny", cpu_path=request.param)
    yield Driver(engine)
    engine.close()


def test_logits_that_are_not_finite_end_their_sequence_alone(driver: Driver) -> None:
    driver.begin(1, HISTORY)
    driver.begin(2, HISTORY[:9])
    expected = driver.decode(1, 2, steps=2)[1]
    sick = copied(driver.engine.export(1, 0, 30))
    sick.full["g0.k"][0, 0, 3, 0] = np.nan
    driver.restore(3, sick)
    driver.begin(4, HISTORY[:9])
    result = driver.step(PrefillChunk(3, 30, tokens([5]), GREEDY), decode=[4])
    assert [(one.sequence, one.problem) for one in result.failed] == [
        (3, "its logits are not finite")
    ]
    assert result.sampled == (Sampled(4, expected[0]),)
    assert same_bits(driver.engine.export(3, 0, 30), sick)
    assert driver.decode(4) == [expected[1:]]


def test_a_failed_sequence_keeps_its_rows_and_fails_until_it_is_trimmed(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.begin(1, HISTORY[:12])
    driver.begin(2, HISTORY[:9])
    kept = copied(driver.engine.export(1, 0, 12))
    with monkeypatch.context() as patch:
        _nan_at(patch, 12)
        for _ in range(driver.engine.card.in_flight):
            driver.submit(decode=[1, 2])
        for _ in range(driver.engine.card.in_flight):
            result = driver.engine.collect()
            assert [one.sequence for one in result.failed] == [1]
            assert [one.sequence for one in result.sampled] == [2]
    assert [one.sequence for one in driver.step(decode=[1, 2]).failed] == [1]
    assert same_bits(driver.engine.export(1, 0, 12), kept)
    with pytest.raises(IntegrityError, match="12 rows"):
        driver.engine.export(1, 0, 13)
    driver.engine.trim(1, 0)
    assert driver.prefill(1, HISTORY) == driver.begin(3, HISTORY)


def test_a_failure_that_shows_late_does_not_touch_what_was_started_since(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.begin(1, HISTORY[:12])
    with monkeypatch.context() as patch:
        _nan_at(patch, 12)
        driver.submit(decode=[1])
    driver.engine.trim(1, 5)
    if driver.engine.card.in_flight > 1:
        driver.submit(PrefillChunk(1, 5, tokens(HISTORY[5:20]), GREEDY))
    assert driver.engine.collect().failed == ()
    if driver.engine.card.in_flight > 1:
        assert [one.sequence for one in driver.engine.collect().sampled] == [1]
    else:
        driver.prefill(1, HISTORY[5:20], 5)
    driver.begin(2, HISTORY[:20])
    assert driver.decode(1) == driver.decode(2)


def test_an_error_in_a_batch_ends_only_the_sequence_that_causes_it(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n, length in enumerate((9, 12, 15)):
        driver.begin(n, HISTORY[:length])
    expected = driver.decode(0, 1, 2, steps=3)
    for n, length in enumerate((9, 12, 15)):
        driver.engine.drop(n)
        driver.begin(n, HISTORY[:length])
    _raise_at(monkeypatch, 12)
    result = driver.step(decode=[0, 1, 2])
    assert [one.token for one in result.sampled] == [expected[0][0], expected[2][0]]
    assert [(one.sequence, one.problem) for one in result.failed] == [(1, "RuntimeError: broken")]
    assert driver.decode(0, 2, steps=2) == [expected[0][1:], expected[2][1:]]
    with pytest.raises(IntegrityError, match="12 rows"):
        driver.engine.export(1, 0, 13)


def test_an_error_in_prefill_leaves_the_rows_as_they_were(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.begin(1, HISTORY[:12])
    kept = copied(driver.engine.export(1, 0, 12))
    _raise_at(monkeypatch, 12)
    result = driver.step(PrefillChunk(1, 12, tokens(HISTORY[12:]), GREEDY))
    assert [one.problem for one in result.failed] == ["RuntimeError: broken"]
    assert same_bits(driver.engine.export(1, 0, 12), kept)
    monkeypatch.undo()
    driver.engine.trim(1, 12)
    assert driver.prefill(1, HISTORY[12:], 12) == driver.begin(2, HISTORY)


def _sabotage(
    monkeypatch: pytest.MonkeyPatch, harm: Callable[[mx.array, mx.array], mx.array]
) -> None:
    """Let `harm` have the offsets before a forward and what came out of the model's body."""
    call = LlamaModel.__call__

    def harmed(self: LlamaModel, inputs: mx.array, cache: Sequence[ArrayLeaf]) -> mx.array:
        offsets = mx.array(cache[0].offset).reshape(-1, 1, 1)
        return harm(offsets, call(self, inputs, cache))

    monkeypatch.setattr(LlamaModel, "__call__", harmed)


def _raise_at(monkeypatch: pytest.MonkeyPatch, offset: int) -> None:
    def harm(offsets: mx.array, out: mx.array) -> mx.array:
        if mx.any(offsets == offset).item():
            raise RuntimeError("broken")
        return out

    _sabotage(monkeypatch, harm)


def _nan_at(monkeypatch: pytest.MonkeyPatch, offset: int) -> None:
    _sabotage(monkeypatch, lambda offsets, out: mx.where(offsets == offset, mx.nan, out))
