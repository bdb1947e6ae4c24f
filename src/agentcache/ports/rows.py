"""Rows in host memory: how KV crosses between an engine, a codec and a store."""

from collections.abc import Mapping, MutableMapping

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from agentcache.domain.spec import CacheSpec, LayerKind

RowArray = NDArray[np.generic]
NUMPY_DTYPE: dict[str, np.dtype[np.generic]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),  # numpy has none: its bits
    "int32": np.dtype(np.int32),
    "uint8": np.dtype(np.uint8),
}


@frozen(eq=False)
class Rows:
    """The rows of tokens [start, stop), native dtype, possibly strided views of live buffers.

    `full` and `window` map a role (`CacheSpec.groups`: "g0.k", "g0.v", ...) to an array of shape
    [layers of the group, heads, rows, dim]. Full groups have stop - start rows; window groups the
    last min(window, stop - start). `state` maps "s<layer>.<n>" to a state array as it is at `stop`.
    bfloat16 is held as its bits in uint16. `whole` maps "c<layer>" to the bytes of a cache that is
    kept whole, as it is at `stop`; rows to be filled have an empty mapping there, because nobody
    knows before how many bytes these are.
    """

    start: int
    stop: int
    full: Mapping[str, RowArray] = field(factory=dict)
    window: Mapping[str, RowArray] = field(factory=dict)
    state: Mapping[str, RowArray] = field(factory=dict)
    whole: MutableMapping[str, RowArray] | None = None

    def part(self, start: int, stop: int) -> "Rows":
        """Views of the full rows [start, stop); all other arrays only if stop is the end."""
        if not self.start <= start <= stop <= self.stop:
            raise ValueError(f"[{start}, {stop}) is not within [{self.start}, {self.stop})")
        cut = slice(start - self.start, stop - self.start)
        full = {role: array[:, :, cut] for role, array in self.full.items()}
        if stop != self.stop:
            return Rows(start, stop, full)
        return Rows(start, stop, full, self.window, self.state, self.whole)


def empty_rows(spec: CacheSpec, start: int, stop: int, capacity: int | None = None) -> Rows:
    """Uninitialised rows of `spec` for [start, stop), for a codec or a test to fill.

    With `capacity`, the full arrays are views of buffers with that many rows.
    """
    dtype, count = NUMPY_DTYPE[spec.dtype], stop - start
    full: dict[str, RowArray] = {}
    window: dict[str, RowArray] = {}
    for group in spec.groups:
        for role, dim in group.roles():
            lead = (len(group.layers), group.heads)
            if group.kind is LayerKind.FULL:
                full[role] = np.empty((*lead, capacity or count, dim), dtype)[:, :, :count]
            else:
                window[role] = np.empty((*lead, min(group.window or count, count), dim), dtype)
    state = {
        f"s{index}.{n}": np.empty(array.shape, NUMPY_DTYPE[array.dtype])
        for index, layer in enumerate(spec.layers)
        for n, array in enumerate(layer.state)
    }
    return Rows(start, stop, full, window, state, {} if spec.whole else None)
