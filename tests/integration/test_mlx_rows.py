"""Rows of real arrays: out of one sequence's caches, through a codec, into another's, unchanged."""

import numpy as np
import pytest
from attrs import define
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agentcache.adapters.codecs import codec
from agentcache.domain.spec import ITEM_BYTES, CacheSpec, LayerKind, LayerSpec, StateArray
from agentcache.ports.rows import Rows, empty_rows
from agentcache.testing.driving import copied, fill, same_bits
from tests.parking import native_bytes

import mlx.core as mx  # isort: skip  (after the BLAS)
from mlx_lm.models.cache import (  # isort: skip
    ArraysCache,
    ChunkedKVCache,
    KVCache,
    RotatingKVCache,
)

from agentcache.adapters.mlx.cache_adapter import MLXCacheAdapter  # isort: skip
from agentcache.adapters.mlx.live import LiveCache  # isort: skip
from agentcache.adapters.mlx.spec import described  # isort: skip

DTYPES = ("float32", "float16", "bfloat16")
DIMS = (8, 40, 64, 80, 112)
CAPACITY = 96


@define
class Written:
    """Live caches, and what was written into them."""

    adapter: MLXCacheAdapter
    noise: np.random.Generator

    def run(self, cache: LiveCache, count: int) -> None:
        """Write `count` tokens as a model does, some of the numbers not finite."""
        given = self.adapter.single(cache)
        spec = self.adapter.spec
        for leaf, layer in zip(given, spec.layers, strict=True):
            if layer.kind is LayerKind.STATE:
                for n, one in enumerate(layer.state):
                    leaf[n] = self._array((1, *one.shape), one.dtype)  # type: ignore[index]
                continue
            shape = (1, layer.heads, count)
            if layer.kind is LayerKind.WINDOW and hasattr(leaf, "maybe_trim_front"):
                leaf.maybe_trim_front()
            leaf.update_and_fetch(  # type: ignore[attr-defined]
                self._array((*shape, layer.key_dim), spec.dtype),
                self._array((*shape, layer.value_dim), spec.dtype),
            )
        given.ran(count)

    def _array(self, shape: tuple[int, ...], dtype: str) -> mx.array:
        numbers = self.noise.standard_normal(shape).astype(np.float32)
        numbers[self.noise.random(shape) < 0.01] = np.nan
        numbers[self.noise.random(shape) < 0.01] = np.inf
        return mx.array(numbers).astype(getattr(mx, dtype))


layers = st.one_of(
    st.builds(LayerSpec.full, st.integers(1, 3), st.sampled_from(DIMS), st.sampled_from(DIMS)),
    st.builds(
        LayerSpec,
        st.just(LayerKind.WINDOW),
        st.integers(1, 2),
        st.sampled_from(DIMS),
        st.sampled_from(DIMS),
        st.integers(1, 24),
    ),
    st.lists(
        st.builds(
            StateArray,
            st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple),
            st.sampled_from(DTYPES),
        ),
        min_size=1,
        max_size=2,
    ).map(lambda arrays: LayerSpec(LayerKind.STATE, state=tuple(arrays))),
)
specs = st.builds(
    CacheSpec, st.lists(layers, min_size=1, max_size=4).map(tuple), st.sampled_from(DTYPES)
)
chunks = st.lists(st.integers(1, 30), min_size=1, max_size=5).filter(
    lambda sizes: sum(sizes) <= CAPACITY - 8
)


def _adapter(spec: CacheSpec, chunked: bool, in_buffers: bool) -> MLXCacheAdapter:
    shape: list[object] = []
    for layer in spec.layers:
        if layer.kind is LayerKind.FULL:
            shape.append(KVCache())
        elif layer.kind is LayerKind.STATE:
            shape.append(ArraysCache(len(layer.state)))
        else:
            kind = ChunkedKVCache if chunked else RotatingKVCache
            shape.append(kind(layer.window))
    return MLXCacheAdapter(spec, shape, in_buffers and spec.dtype == "float32")


@settings(max_examples=60)
@given(
    spec=specs,
    sizes=chunks,
    chunked=st.booleans(),
    in_buffers=st.booleans(),
    more=st.integers(0, 8),
    seed=st.integers(0, 2**32 - 1),
)
def test_whatever_was_written_is_restored_to_the_bit(
    spec: CacheSpec, sizes: list[int], chunked: bool, in_buffers: bool, more: int, seed: int
) -> None:
    """Segments end after each chunk; then the live and the restored one take the same tokens."""
    adapter = _adapter(spec, chunked, in_buffers)
    live, native = adapter.empty(CAPACITY), codec("native")
    written = Written(adapter, np.random.default_rng(seed))
    whole = empty_rows(spec, 0, sum(sizes))
    for size in sizes:
        written.run(live, size)
        rows = live.rows(live.length - size, live.length)
        payload = native.encode(spec, rows)
        assert payload.nbytes == native_bytes(spec, size)
        out = empty_rows(spec, rows.start, rows.stop)
        native.decode(spec, payload, out)
        assert same_bits(out, copied(rows))
        _take(whole, out)
    restored = adapter.empty(CAPACITY)
    fill(restored.blank(live.length), whole)
    restored.adopt(live.length)
    assert same_bits(copied(restored.rows(0, live.length)), copied(live.rows(0, live.length)))
    for cache in (live, restored):
        again = Written(adapter, np.random.default_rng(seed))
        for _ in range(more):
            again.run(cache, 1)
    stop = live.length
    assert same_bits(copied(restored.rows(0, stop)), copied(live.rows(0, stop)))
    assert restored.nbytes == live.nbytes or not spec.interior_restorable


@settings(max_examples=30)
@given(
    spec=specs.filter(lambda spec: bool(spec.groups)),
    size=st.integers(1, 40),
    name=st.sampled_from(["f16", "q8", "q4", "k8v4"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_is_not_finite_survives_every_codec(
    spec: CacheSpec, size: int, name: str, seed: int
) -> None:
    adapter, lossy = _adapter(spec, chunked=False, in_buffers=True), codec(name)
    live = adapter.empty(CAPACITY)
    Written(adapter, np.random.default_rng(seed)).run(live, size)
    rows, out = live.rows(0, size), empty_rows(spec, 0, size)
    lossy.decode(spec, lossy.encode(spec, rows), out)
    for before, after in ((rows.full, out.full), (rows.window, out.window)):
        for role, array in before.items():
            found, kept = _numbers(array), _numbers(after[role])
            odd = ~np.isfinite(found)
            assert np.array_equal(found[odd], kept[odd], equal_nan=True)
            assert np.isfinite(kept[~odd]).all()
    assert all(np.array(rows.state[one]).tobytes() == out.state[one].tobytes() for one in out.state)


@pytest.mark.parametrize("dtype", DTYPES)
def test_live_windows_and_states_take_what_the_spec_says_however_long_it_gets(dtype: str) -> None:
    """Of 800 tokens a window of 100 keeps what an eighth of them would take, and its slack."""
    window = LayerSpec(LayerKind.WINDOW, 2, 64, 64, 100)
    state = LayerSpec(LayerKind.STATE, state=(StateArray((16, 8), "float32"),))
    adapter = _adapter(CacheSpec((window, state), dtype), chunked=False, in_buffers=True)
    live, written = adapter.empty(1024), Written(adapter, np.random.default_rng(1))
    for _ in range(12):
        written.run(live, 64)
    for _ in range(32):
        written.run(live, 1)
    assert live.length == 800
    row = window.row_items * ITEM_BYTES[dtype]
    assert live.nbytes == 2 * 100 * row + adapter.spec.state_bytes
    assert live.nbytes < 800 * row / 3


@pytest.mark.parametrize("in_buffers", [True, False], ids=["numpy buffers", "mlx arrays"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_window_of_1024_keeps_no_8192_rows(chunked: bool, in_buffers: bool) -> None:
    """Neither live, nor in the segment that is written of them."""
    window = LayerSpec(LayerKind.WINDOW, 2, 64, 64, 1024)
    adapter = _adapter(CacheSpec((window,), "float32"), chunked, in_buffers)
    live, written = adapter.empty(9000), Written(adapter, np.random.default_rng(1))
    for _ in range(16):
        written.run(live, 512)
    assert live.length == 8192
    row = window.row_items * ITEM_BYTES["float32"]
    assert live.nbytes == (1024 + 256) * row
    payload = codec("native").encode(adapter.spec, live.rows(0, 8192))
    assert payload.nbytes == 1024 * row


def test_caches_that_a_model_filled_are_described_as_what_they_are() -> None:
    adapter = _adapter(CacheSpec((LayerSpec.full(2, 40, 80),), "bfloat16"), False, False)
    cache = adapter.empty(8)
    Written(adapter, np.random.default_rng(1)).run(cache, 3)
    assert described(cache.leaves, "x") == adapter.spec


def _take(whole: Rows, part: Rows) -> None:
    """Put a segment's rows where they belong in those of the whole sequence."""
    for role, array in part.full.items():
        whole.full[role][:, :, part.start : part.stop] = array
    for role, array in part.window.items():
        first = whole.stop - whole.window[role].shape[2]
        held = range(part.stop - array.shape[2], part.stop)
        for n, position in enumerate(held):
            if position >= first:
                whole.window[role][:, :, position - first] = array[:, :, n]
    for name, array in part.state.items():
        whole.state[name][...] = array


def _numbers(array: NDArray[np.generic]) -> NDArray[np.float32]:
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(array, np.float32)
