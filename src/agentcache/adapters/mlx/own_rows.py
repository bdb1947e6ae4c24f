"""Rows out of mlx-lm's own cache objects and into them, whatever their class. Copies both ways."""

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import ArraysCache, ChunkedKVCache, KVCache, RotatingKVCache

from agentcache.adapters.mlx.arrays import to_device, to_host
from agentcache.domain.spec import CacheSpec, LayerGroup, LayerKind
from agentcache.ports.rows import RowArray, Rows

STEP = 256  # by which mlx-lm's caches grow


def length_of(leaf: object) -> int | None:
    """How many tokens `leaf` has seen; None where it does not count them."""
    return None if isinstance(leaf, ArraysCache) else int(leaf.offset)  # type: ignore[attr-defined]


def taken(spec: CacheSpec, leaves: Sequence[Any], start: int, stop: int) -> Rows:
    """The rows [start, stop) of caches that have seen `stop` tokens."""
    full: dict[str, RowArray] = {}
    window: dict[str, RowArray] = {}
    for group in spec.groups:
        count = min(group.window or stop - start, stop - start)
        kept = full if group.kind is LayerKind.FULL else window
        tails = [_tail(leaves[layer], count) for layer in group.layers]
        for (role, _), arrays in zip(group.roles(), zip(*tails, strict=True), strict=True):
            kept[role] = np.concatenate([to_host(array) for array in arrays])
    state = {name: np.array(to_host(array[0])) for name, array in _states(spec, leaves)}
    return Rows(start, stop, full, window, state)


def fill(spec: CacheSpec, leaves: Sequence[Any], rows: Rows) -> None:
    """Let empty `leaves` go on after `rows`, which begin at 0."""
    for group in spec.groups:
        source = rows.full if group.kind is LayerKind.FULL else rows.window
        for n, layer in enumerate(group.layers):
            keys, values = (
                to_device(source[role][n : n + 1], spec.dtype) for role, _ in group.roles()
            )
            _put(leaves[layer], group, keys, values, rows.stop)
    for index, layer_spec in enumerate(spec.layers):
        for n, array in enumerate(layer_spec.state):
            value = np.ascontiguousarray(rows.state[f"s{index}.{n}"])[None]
            leaves[index].cache[n] = to_device(value, array.dtype)
    mx.eval([array for leaf in leaves for array in arrays_of(leaf)])


def _tail(leaf: Any, count: int) -> tuple[mx.array, mx.array]:
    """The last `count` rows of `leaf`, in the order of their tokens."""
    if isinstance(leaf, RotatingKVCache):
        keys, values = leaf._temporal_order(leaf.keys), leaf._temporal_order(leaf.values)  # type: ignore[no-untyped-call]
        stop = keys.shape[2]
    else:
        keys, values = leaf.keys, leaf.values
        stop = leaf.offset - getattr(leaf, "start_position", 0)
    if stop < count:
        raise ValueError(f"{count} rows are needed of a cache that holds {stop}")
    return keys[:, :, stop - count : stop], values[:, :, stop - count : stop]


def _put(leaf: Any, group: LayerGroup, keys: mx.array, values: mx.array, stop: int) -> None:
    count = keys.shape[2]
    if isinstance(leaf, KVCache):
        keys, values = (_with_room(array, count) for array in (keys, values))
    elif isinstance(leaf, RotatingKVCache):
        leaf._idx = count
    elif isinstance(leaf, ChunkedKVCache):
        leaf.start_position = stop - count
    else:
        raise TypeError(f"{type(leaf).__name__} has no rows of {group.name}")
    leaf.keys, leaf.values, leaf.offset = keys, values, stop


def _with_room(array: mx.array, count: int) -> mx.array:
    """With slack, so that the next tokens copy nothing."""
    more = (count // STEP + 2) * STEP - count
    return mx.pad(array, [(0, 0), (0, 0), (0, more), (0, 0)])


def _states(spec: CacheSpec, leaves: Sequence[Any]) -> Iterator[tuple[str, mx.array]]:
    for index, layer in enumerate(spec.layers):
        for n in range(len(layer.state)):
            yield f"s{index}.{n}", leaves[index].cache[n]


def arrays_of(leaf: Any) -> list[mx.array]:
    """The arrays of a filled cache."""
    held: list[mx.array] = leaf.cache if hasattr(leaf, "cache") else [leaf.keys, leaf.values]
    return held
