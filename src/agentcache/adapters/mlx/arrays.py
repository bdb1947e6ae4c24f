"""Rows in mlx-lm's own caches: what a GPU attends to. They cross to numpy as copies."""

from collections.abc import Sequence
from functools import partial
from typing import Protocol, cast

import mlx.core as mx
import numpy as np
from attrs import define, field
from mlx_lm.models.cache import KVCache

from agentcache.adapters.mlx.handles import Mask
from agentcache.adapters.mlx.live import Undo
from agentcache.domain.spec import CacheSpec, LayerGroup, LayerKind, LayerSpec
from agentcache.ports.rows import RowArray, Rows, empty_rows


class ArrayLeaf(Protocol):
    """mlx-lm's `KVCache` with its arrays [1, heads, capacity, dim] in place.

    The next `held` rows to come are there already, and stay as they are.
    """

    keys: mx.array
    values: mx.array
    offset: int
    held: int

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Add rows [1, heads, L, dim]; return all rows that are there."""
        ...

    def make_mask(
        self,
        N: int,  # noqa: N803  (mlx-lm's name)
        return_array: bool = False,
        window_size: int | None = None,
    ) -> Mask:
        """The mask for `N` more rows, asked for before they are added."""
        ...


class HoldingCache(KVCache):
    """mlx-lm's `KVCache` in which rows can be run again without being written over."""

    held = 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """See `ArrayLeaf`."""
        held, self.held = self.held, 0
        self.offset += held
        rows: tuple[mx.array, mx.array] = super().update_and_fetch(  # type: ignore[no-untyped-call]
            keys[:, :, held:], values[:, :, held:]
        )
        return rows


@define(eq=False)
class ArrayCache:
    """One sequence's full layers, a `KVCache` each, with room for `capacity` rows from the start.

    Between `blank` and `adopt` the restored rows also exist in host memory.
    """

    spec: CacheSpec
    capacity: int
    leaves: Sequence[ArrayLeaf]
    _staged: Rows | None = field(default=None, init=False)

    @classmethod
    def of(cls, spec: CacheSpec, capacity: int) -> "ArrayCache":
        """An empty cache. Raises MemoryError when there is no room."""
        layers = [spec.layers[index] for index in spec.layers_of(LayerKind.FULL)]
        cache = cls(spec, capacity, [_leaf(layer, capacity, spec.dtype) for layer in layers])
        cache._compute()
        return cache

    @property
    def layers(self) -> Sequence[int]:
        """See `Part.layers`."""
        return self.spec.layers_of(LayerKind.FULL)

    @property
    def interior(self) -> bool:
        """See `Part.interior`."""
        return True

    @property
    def length(self) -> int:
        """Rows that are there."""
        return self.leaves[0].offset

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, and of rows that wait to be adopted."""
        staged = self._staged.full.values() if self._staged else ()
        return sum(array.nbytes for array in (*self._arrays(), *staged))

    def blank(self, count: int) -> Rows:
        """Host arrays for the first `count` rows, kept until they are adopted."""
        rows = Rows(0, count, empty_rows(self.spec, 0, count).full)
        self._staged = rows if count else None
        return rows

    def adopt(self, length: int) -> None:
        """Copy `length` of the blank rows in, and give the host arrays back."""
        if self._staged is not None:
            for group in self.spec.groups_of(LayerKind.FULL):
                self._fill(group, self._staged.part(0, length))
        self._compute()
        self._staged = None
        self.rewind(length)

    def grow(self, capacity: int) -> None:
        """Copy the rows into larger arrays."""
        for layer, leaf in zip(self.layers, self.leaves, strict=True):
            slack = _leaf(self.spec.layers[layer], capacity - self.capacity, self.spec.dtype)
            leaf.keys = mx.concatenate([leaf.keys, slack.keys], axis=2)
            leaf.values = mx.concatenate([leaf.values, slack.values], axis=2)
        self._compute()
        self.capacity = capacity

    def ran(self, count: int) -> None:
        """See `Part.ran`. Every leaf counts for itself."""

    def rewind(self, length: int) -> None:
        """Set every leaf to `length` rows."""
        for leaf in self.leaves:
            leaf.offset, leaf.held = length, 0

    def hold(self, count: int) -> None:
        """See `LiveCache.hold`."""
        for leaf in self.leaves:
            leaf.offset, leaf.held = leaf.offset - count, count

    def rows(self, start: int, stop: int) -> Rows:
        """Copies of the rows [start, stop), one array a role."""
        full: dict[str, RowArray] = {}
        for group in self.spec.groups_of(LayerKind.FULL):
            (k, _), (v, _) = group.roles()
            members = [self._leaf_of(layer) for layer in group.layers]
            full[k] = np.concatenate([to_host(leaf.keys[:, :, start:stop]) for leaf in members])
            full[v] = np.concatenate([to_host(leaf.values[:, :, start:stop]) for leaf in members])
        return Rows(start, stop, full)

    def mark(self) -> Undo:
        """See `Part.mark`."""
        return partial(self.rewind, self.length)

    def lazy(self) -> Sequence[mx.array]:
        """All rows: a chunk in the middle of a prompt has no logits."""
        return self._arrays()

    def _leaf_of(self, layer: int) -> ArrayLeaf:
        return self.leaves[self.layers.index(layer)]

    def _fill(self, group: LayerGroup, rows: Rows) -> None:
        (k, _), (v, _) = group.roles()
        for n, layer in enumerate(group.layers):
            leaf, dtype = self._leaf_of(layer), self.spec.dtype
            leaf.keys[:, :, : rows.stop] = to_device(rows.full[k][n : n + 1], dtype)
            leaf.values[:, :, : rows.stop] = to_device(rows.full[v][n : n + 1], dtype)

    def _arrays(self) -> list[mx.array]:
        return [array for leaf in self.leaves for array in (leaf.keys, leaf.values)]

    def _compute(self) -> None:
        mx.eval(self._arrays())


def _leaf(layer: LayerSpec, rows: int, dtype: str) -> ArrayLeaf:
    leaf = cast(ArrayLeaf, HoldingCache())  # type: ignore[no-untyped-call]
    leaf.keys = mx.zeros((1, layer.heads, rows, layer.key_dim), getattr(mx, dtype))
    leaf.values = mx.zeros((1, layer.heads, rows, layer.value_dim), getattr(mx, dtype))
    return leaf


def to_device(array: RowArray, dtype: str) -> mx.array:
    """A copy of a host array; bfloat16 comes as its bits."""
    copy = mx.array(array)
    return copy.view(mx.bfloat16) if dtype == "bfloat16" else copy


def to_host(array: mx.array) -> RowArray:
    """The array's values as numpy sees them; those of bfloat16 are its bits."""
    return np.asarray(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)
