"""Finds out at load what a model can be trusted with, by comparing forwards on a few tokens."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
from attrs import frozen
from mlx_lm.models.cache import make_prompt_cache
from numpy.typing import NDArray

from agentcache.adapters.mlx.cache_adapter import MLXCacheAdapter
from agentcache.adapters.mlx.forward import Forward
from agentcache.adapters.mlx.live import LiveCache
from agentcache.adapters.mlx.spec import LanguageModel
from agentcache.ports.rows import Rows

# Largest difference of logits, as a share of the largest logit. Rounding stays far below, a wrong
# position or a row of another sequence far above.
_TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 5e-2}
_LENGTHS = (5, 1, 3)
_STEPS = 2

_Logits = NDArray[np.float32]


@frozen
class Verdict:
    """Whether something works with a model, and if not, why."""

    works: bool
    reason: str = ""


def single_works(model: LanguageModel, forward: Forward, adapter: MLXCacheAdapter) -> Verdict:
    """Whether a sequence gets in the adapter's caches what it gets in the model's own."""

    def run(cache: list[object]) -> _Logits:
        return np.concatenate([_host(forward.last(part, cache)) for part in ([1, 2, 3], [4], [5])])

    def ours() -> _Logits:
        return run(adapter.single(adapter.empty(5)))

    return _equal(ours, lambda: run(make_prompt_cache(model)), adapter.spec.dtype)


def restoring_works(forward: Forward, adapter: MLXCacheAdapter) -> Verdict:
    """Whether a sequence goes on from exported rows as from its own."""

    def live() -> LiveCache:
        cache = adapter.empty(8)
        forward.fill([1, 2, 3], adapter.single(cache))
        return cache

    def restored() -> LiveCache:
        rows, cache = live().rows(0, 3), adapter.empty(8)
        _copy(rows, cache.blank(3))
        cache.adopt(3)
        return cache

    def run(cache: LiveCache) -> _Logits:
        parts = ([4, 5], [6])
        return np.concatenate([_host(forward.last(one, adapter.single(cache))) for one in parts])

    return _equal(lambda: run(restored()), lambda: run(live()), adapter.spec.dtype)


def ragged_works(forward: Forward, adapter: MLXCacheAdapter) -> Verdict:
    """Whether sequences of different length get in one forward what each gets in its own."""
    return _equal(
        lambda: np.concatenate(_batched(forward, adapter)),
        lambda: np.concatenate(_one_by_one(forward, adapter)),
        adapter.spec.dtype,
    )


def _batched(forward: Forward, adapter: MLXCacheAdapter) -> list[_Logits]:
    caches = _prefilled(forward, adapter)
    steps = []
    for step in range(_STEPS):
        ids = mx.array([step + n for n in range(len(caches))])
        steps.append(_host(forward.next(ids, adapter.ragged(caches))))
    return steps


def _one_by_one(forward: Forward, adapter: MLXCacheAdapter) -> list[_Logits]:
    caches = _prefilled(forward, adapter)
    return [
        _host(forward.last([step + n], adapter.single(cache)))
        for step in range(_STEPS)
        for n, cache in enumerate(caches)
    ]


def _prefilled(forward: Forward, adapter: MLXCacheAdapter) -> list[LiveCache]:
    caches = [adapter.empty(length + _STEPS) for length in _LENGTHS]
    for cache, length in zip(caches, _LENGTHS, strict=True):
        forward.fill(range(length), adapter.single(cache))
    return caches


def _equal(one: Callable[[], _Logits], other: Callable[[], _Logits], dtype: str) -> Verdict:
    expected = other()
    try:
        found = one()
    except Exception as error:  # whatever a model does to what it does not know
        return Verdict(False, f"{type(error).__name__}: {error}")
    if found.shape != expected.shape:
        return Verdict(False, f"logits are {found.shape}, not {expected.shape}")
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    if difference <= _TOLERANCE.get(dtype, 0):
        return Verdict(True)
    return Verdict(False, f"logits differ by {difference:.1e} of the largest")


def _copy(rows: Rows, out: Rows) -> None:
    for found, blank in (
        (rows.full, out.full),
        (rows.window, out.window),
        (rows.state, out.state),
    ):
        for name, array in found.items():
            np.copyto(blank[name], array)
    if out.whole is not None:
        out.whole.update(rows.whole or {})


def _host(logits: mx.array) -> _Logits:
    return np.asarray(logits.astype(mx.float32))
