"""Rows in mlx-lm's own caches: what a GPU attends to. They cross to numpy as copies."""

from collections.abc import Sequence
from typing import Protocol, cast

import mlx.core as mx
import numpy as np
from attrs import define, field
from mlx_lm.models.cache import KVCache

from agentcache.adapters.mlx.handles import Mask
from agentcache.domain.spec import CacheSpec, LayerGroup, LayerSpec
from agentcache.ports.rows import RowArray, Rows, empty_rows


class ArrayLeaf(Protocol):
    """mlx-lm's `KVCache` with its arrays [1, heads, capacity, dim] in place."""

    keys: mx.array
    values: mx.array
    offset: int

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


@define(eq=False)
class ArrayCache:
    """One sequence's rows in one `KVCache` a layer, with room for `capacity` rows from the start.

    Between `blank` and `adopt` the restored rows also exist in host memory.
    """

    spec: CacheSpec
    capacity: int
    leaves: Sequence[ArrayLeaf]
    _staged: Rows | None = field(default=None, init=False)

    @classmethod
    def of(cls, spec: CacheSpec, capacity: int) -> "ArrayCache":
        """An empty cache. Raises MemoryError when there is no room."""
        cache = cls(spec, capacity, [_leaf(layer, capacity, spec.dtype) for layer in spec.layers])
        cache._compute()
        return cache

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
        rows = empty_rows(self.spec, 0, count)
        self._staged = rows if count else None
        return rows

    def adopt(self, length: int) -> None:
        """Copy `length` of the blank rows in, and give the host arrays back."""
        if self._staged is not None:
            for group in self.spec.groups:
                self._fill(group, self._staged.part(0, length))
        self._compute()
        self._staged = None
        self.rewind(length)

    def grow(self, capacity: int) -> None:
        """Copy the rows into larger arrays."""
        for layer, leaf in zip(self.spec.layers, self.leaves, strict=True):
            slack = _leaf(layer, capacity - self.capacity, self.spec.dtype)
            leaf.keys = mx.concatenate([leaf.keys, slack.keys], axis=2)
            leaf.values = mx.concatenate([leaf.values, slack.values], axis=2)
        self._compute()
        self.capacity = capacity

    def rewind(self, length: int) -> None:
        """Set every leaf to `length` rows."""
        for leaf in self.leaves:
            leaf.offset = length

    def rows(self, start: int, stop: int) -> Rows:
        """Copies of the rows [start, stop), one array a role."""
        full: dict[str, RowArray] = {}
        for group in self.spec.groups:
            (k, _), (v, _) = group.roles()
            members = [self.leaves[layer] for layer in group.layers]
            full[k] = np.concatenate([_to_host(leaf.keys[:, :, start:stop]) for leaf in members])
            full[v] = np.concatenate([_to_host(leaf.values[:, :, start:stop]) for leaf in members])
        return Rows(start, stop, full)

    def settle(self) -> None:
        """Let MLX start on the rows that are still lazy."""
        mx.async_eval(self._arrays())  # type: ignore[no-untyped-call]

    def _fill(self, group: LayerGroup, rows: Rows) -> None:
        (k, _), (v, _) = group.roles()
        for n, layer in enumerate(group.layers):
            leaf = self.leaves[layer]
            leaf.keys[:, :, : rows.stop] = self._to_device(rows.full[k][n : n + 1])
            leaf.values[:, :, : rows.stop] = self._to_device(rows.full[v][n : n + 1])

    def _to_device(self, rows: RowArray) -> mx.array:
        array = mx.array(rows)
        return array.view(mx.bfloat16) if self.spec.dtype == "bfloat16" else array

    def _arrays(self) -> list[mx.array]:
        return [array for leaf in self.leaves for array in (leaf.keys, leaf.values)]

    def _compute(self) -> None:
        mx.eval(self._arrays())


def _leaf(layer: LayerSpec, rows: int, dtype: str) -> ArrayLeaf:
    leaf = cast(ArrayLeaf, KVCache())  # type: ignore[no-untyped-call]
    leaf.keys = mx.zeros((1, layer.heads, rows, layer.key_dim), getattr(mx, dtype))
    leaf.values = mx.zeros((1, layer.heads, rows, layer.value_dim), getattr(mx, dtype))
    return leaf


def _to_host(array: mx.array) -> RowArray:
    return np.asarray(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)
