"""Cache classes that nobody taught us: kept whole, told of, and never in anybody's way."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from agentcache.domain.errors import IntegrityError, ModelError
from agentcache.domain.plan import PrefillChunk
from agentcache.domain.spec import CacheSpec, LayerSpec
from agentcache.domain.tokens import tokens
from agentcache.testing.driving import Driver
from tests.listening import listening
from tests.parking import HISTORY, STEPS, SUFFIX, Parking
from tests.tiny_models import tiny_llama
from tests.tiny_shapes import UNKNOWN

import mlx.core as mx  # isort: skip  (after the BLAS)
from mlx_lm.models import llama  # isort: skip
from mlx_lm.models.cache import ArraysCache, KVCache, QuantizedKVCache, RotatingKVCache  # isort: skip

from agentcache.adapters.mlx.engine import MLXEngine  # isort: skip
from agentcache.adapters.mlx.whole import pack, unpack  # isort: skip

ENDS = (5, 20, 33)


class Odd(KVCache):
    """A cache of somebody else's making, with more in it than keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []
        self.notes = {"last": None}

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.seen.append(keys.shape[2])
        self.notes["last"] = keys[:, :, -1:]
        return super().update_and_fetch(keys, values)


class Quantised(QuantizedKVCache):
    def __init__(self) -> None:
        super().__init__(group_size=32, bits=8)


CACHES: dict[str, tuple[Callable[[], object], str]] = {
    "unknown": (Odd, "the cache class Odd is not known"),
    "quantised": (Quantised, "the cache class Quantised is not known"),
    "rotating, keeping the first": (
        lambda: RotatingKVCache(max_size=16, keep=4),
        "its rotating cache keeps the first 4 rows, too",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), 3, hidden=128)


def _caching(patch: pytest.MonkeyPatch, cache: Callable[[], object]) -> None:
    """Let Llama have this cache in every layer."""
    patch.setattr(llama.Model, "make_cache", lambda self: [cache() for _ in self.layers])


@pytest.fixture(params=CACHES)
def odd(
    request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Driver, str]]:
    cache, reason = CACHES[request.param]
    _caching(monkeypatch, cache)
    engine = MLXEngine.load(folder, b"x", "odd")
    yield Driver(engine), reason
    engine.close()


def test_what_is_not_understood_is_kept_whole_and_the_reason_is_told(
    odd: tuple[Driver, str], caplog: pytest.LogCaptureFixture, folder: Path
) -> None:
    driver, reason = odd
    card = driver.engine.card
    assert card.spec.whole == {"c0": reason, "c1": reason}
    assert any(reason in note for note in card.notes)
    with caplog.at_level(logging.WARNING):
        MLXEngine.load(folder, b"x", "odd").close()
    assert reason in caplog.text


def test_a_restored_whole_cache_is_the_live_one_to_the_bit(odd: tuple[Driver, str]) -> None:
    driver, _ = odd
    parking = Parking(driver)
    parking.run(1, ENDS)
    for end in ENDS:
        parking.restore(2, end)
        live = Parking(driver)
        live.run(3, [one for one in ENDS if one <= end])
        runs = [_goes_on(driver, sequence, end) for sequence in (2, 3)]
        assert np.array_equal(*runs)


def test_sequences_with_whole_caches_decode_one_after_another(odd: tuple[Driver, str]) -> None:
    driver, _ = odd
    assert driver.engine.batching.mode == "single"
    alone = []
    for n in (0, 5):
        driver.begin(n, HISTORY[n:])
        alone.append(driver.decode(n, steps=4)[0])
        driver.engine.drop(n)
    for n in (0, 5):
        driver.begin(n, HISTORY[n:])
    assert driver.decode(0, 5, steps=4) == alone


def test_a_whole_cache_that_a_failure_left_half_way_is_neither_kept_nor_run(
    odd: tuple[Driver, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, _ = odd
    driver.begin(1, HISTORY)
    with monkeypatch.context() as patch:
        patch.setattr(llama.MLP, "__call__", lambda *_: 1 / 0)
        assert driver.step(decode=[1]).failed
    with pytest.raises(IntegrityError, match="half-way"):
        driver.engine.export(1, 0, len(HISTORY))
    driver.engine.trim(1, len(HISTORY))
    with pytest.raises(IntegrityError, match="half-way"):
        driver.step(PrefillChunk(1, len(HISTORY), tokens([5])))
    driver.engine.trim(1, 0)
    assert driver.prefill(1, HISTORY) == driver.begin(2, HISTORY)


def test_an_architecture_with_caches_of_its_own_resumes(tmp_path: Path) -> None:
    shape = UNKNOWN["deepseek_v41"]
    driver = Driver(MLXEngine.load(shape.made(tmp_path), b"x", "x"))
    assert driver.engine.report.kinds == shape.kinds
    parking = Parking(driver)
    parking.run(1, ENDS)
    parking.restore(2, ENDS[-1])
    assert np.array_equal(*(_goes_on(driver, sequence, ENDS[-1]) for sequence in (1, 2)))
    driver.engine.close()


def test_a_model_that_looks_into_its_caches_gets_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs with nothing of ours, so all its caches are kept whole."""
    plain = llama.Attention.__call__

    def looking(self: object, x: mx.array, mask: object, cache: object) -> mx.array:
        if cache is not None and type(cache) is not RotatingKVCache:
            raise TypeError("whose cache is this?")
        return plain(self, x, mask, cache)

    _caching(monkeypatch, lambda: RotatingKVCache(max_size=16))
    monkeypatch.setattr(llama.Attention, "__call__", looking)
    driver = Driver(MLXEngine.load(folder, b"x", "x"))
    assert driver.engine.report.kinds == "2 whole"
    assert "whose cache is this?" in driver.engine.card.notes[0]
    parking = Parking(driver)
    parking.run(1, ENDS)
    parking.restore(2, ENDS[-1])
    assert np.array_equal(*(_goes_on(driver, sequence, ENDS[-1]) for sequence in (1, 2)))
    driver.engine.close()


def test_a_model_whose_caches_cannot_be_stored_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hidden(KVCache):
        """Keeps its rows where nobody finds them."""

        __slots__ = ()
        rows: dict[int, tuple[mx.array, mx.array]] = {}  # noqa: RUF012

        def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
            if id(self) in self.rows:
                before = self.rows[id(self)]
                keys = mx.concatenate([before[0], keys], axis=2)
                values = mx.concatenate([before[1], values], axis=2)
            self.rows[id(self)] = keys, values
            self.offset = keys.shape[2]
            return keys, values

    _caching(monkeypatch, Hidden)
    with pytest.raises(ModelError, match="cannot be stored"):
        MLXEngine.load(folder, b"x", "x")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32", "bool_", "uint8"])
def test_every_attribute_of_a_cache_comes_back(dtype: str) -> None:
    cache = ArraysCache(3)
    cache[0] = (mx.random.normal((2, 3, 5)) * 4).astype(getattr(mx, dtype))
    cache[1] = mx.zeros((1, 0, 4))
    cache.extra = {"n": 3, "x": 0.5, "t": (1, "two", None), "a": [mx.array(7)]}  # type: ignore
    fresh = ArraysCache(3)
    unpack(pack(cache), fresh)
    assert mx.array_equal(fresh[0], cache[0]).item()
    assert (fresh[0].dtype, fresh[1].shape, fresh[2]) == (cache[0].dtype, (1, 0, 4), None)
    extra = fresh.extra  # type: ignore[attr-defined]
    assert (extra["n"], extra["x"], extra["t"]) == (3, 0.5, (1, "two", None))
    assert extra["a"][0].item() == 7


def test_numbers_that_are_not_finite_come_back() -> None:
    cache, fresh = KVCache(), KVCache()
    cache.keys = mx.array([float("nan"), float("inf"), -0.0])
    cache.scale = float("inf")  # type: ignore[attr-defined]
    unpack(pack(cache), fresh)
    assert np.array(fresh.keys).tobytes() == np.array(cache.keys).tobytes()
    assert fresh.scale == float("inf")  # type: ignore[attr-defined]


@pytest.mark.parametrize("harm", ["cut off", "no tree", "another tree"])
def test_bytes_that_are_no_such_cache_are_refused(harm: str) -> None:
    cache = KVCache()
    cache.keys = mx.ones((4,))
    packed = pack(cache)
    harmed = {
        "cut off": packed[:-3],
        "no tree": np.zeros(40, np.uint8),
        "another tree": np.frombuffer((2).to_bytes(8, "little") + b"[]", np.uint8),
    }[harm]
    with pytest.raises(ValueError, match=r"."):
        unpack(harmed, KVCache())


def test_what_is_kept_whole_counts_for_the_budget() -> None:
    spec = CacheSpec((LayerSpec.full(1, 4), LayerSpec.whole("it is odd", token_bytes=100)))
    assert spec.live_bytes(10) == 10 * (spec.row_bytes + 100)
    assert not spec.interior_restorable
    assert spec.whole == {"c1": "it is odd"}


def _goes_on(driver: Driver, sequence: int, start: int) -> NDArray[np.float32]:
    with listening() as heard:
        driver.prefill(sequence, SUFFIX, start, chunk=4)
        driver.decode(sequence, steps=STEPS)
    driver.engine.drop(sequence)
    return np.concatenate(heard)
