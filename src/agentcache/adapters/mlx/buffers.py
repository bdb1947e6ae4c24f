"""Rows in numpy buffers with slack: restoring writes straight into place, exporting is a view."""

from collections.abc import Sequence
from functools import partial

import mlx.core as mx
import numpy as np
from attrs import define, field
from mlx_lm.models.cache import create_attention_mask

from agentcache.adapters.mlx.handles import Buffer, BufferHandle, Mask
from agentcache.adapters.mlx.live import Undo
from agentcache.domain.spec import CacheSpec, LayerKind
from agentcache.mapped_memory import MappedMemory
from agentcache.ports.rows import Rows


class BufferLeaf:
    """One layer's rows: views [1, heads, capacity, dim] into the buffers of its group."""

    def __init__(self, keys: Buffer, values: Buffer, offset: int = 0) -> None:
        self.keys, self.values, self.offset = keys, values, offset
        self.held = 0  # rows that are there, and come again: they stay as they are

    def update_and_fetch(
        self, keys: mx.array, values: mx.array
    ) -> tuple[BufferHandle, BufferHandle]:
        """Compute and add rows [1, heads, L, dim]."""
        mx.eval(keys, values)
        handle = BufferHandle([self.append(np.asarray(keys), np.asarray(values))])
        return handle, handle

    def append(self, keys: Buffer, values: Buffer) -> tuple[Buffer, Buffer]:
        """Copy rows [1, heads, L, dim] behind those that are there, and return all, as views.

        Raises when they do not fit.
        """
        held, self.held = self.held, 0
        start, stop = self.offset + held, self.offset + keys.shape[2]
        self.keys[:, :, start:stop] = keys[:, :, held:]
        self.values[:, :, start:stop] = values[:, :, held:]
        self.offset = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def make_mask(
        self,
        N: int,  # noqa: N803  (mlx-lm's name)
        return_array: bool = False,
        window_size: int | None = None,
    ) -> Mask:
        """The causal mask for `N` more rows, as mlx-lm's own cache makes it."""
        mask: Mask = create_attention_mask(N, self.offset, return_array, window_size)
        return mask

    def size(self) -> int:
        """How many rows are there."""
        return self.offset

    def empty(self) -> bool:
        """Whether there are none."""
        return self.offset == 0


@define(eq=False)
class BufferCache:
    """One sequence's full layers: one buffer [layers, heads, capacity, dim] per role of a group."""

    spec: CacheSpec
    capacity: int
    _buffers: dict[str, Buffer]
    _memory: MappedMemory
    leaves: Sequence[BufferLeaf] = field(init=False)

    @leaves.default
    def _no_rows_yet(self) -> list[BufferLeaf]:
        return _leaves(self.spec, self._buffers, 0)

    @classmethod
    def of(cls, spec: CacheSpec, capacity: int, memory: MappedMemory) -> "BufferCache":
        """An empty cache in `memory`. Raises MemoryError when there is no room."""
        return cls(spec, capacity, _buffers(spec, capacity, memory), memory)

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
        """Bytes of the buffers."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def blank(self, count: int) -> Rows:
        """Writable views of the first `count` rows."""
        return Rows(0, count, self._cut(0, count))

    def adopt(self, length: int) -> None:
        """Continue after `length` rows, which were written into the views."""
        self.rewind(length)

    def grow(self, capacity: int) -> None:
        """Copy the rows into larger buffers."""
        larger = _buffers(self.spec, capacity, self._memory)
        for role, buffer in self._buffers.items():
            larger[role][:, :, : self.length] = buffer[:, :, : self.length]
        self.leaves = _leaves(self.spec, larger, self.length)
        self._buffers, self.capacity = larger, capacity

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

    def mark(self) -> Undo:
        """See `Part.mark`."""
        return partial(self.rewind, self.length)

    def rows(self, start: int, stop: int) -> Rows:
        """Views of the rows [start, stop)."""
        return Rows(start, stop, self._cut(start, stop))

    def lazy(self) -> Sequence[mx.array]:
        """Nothing is lazy here."""
        return ()

    def _cut(self, start: int, stop: int) -> dict[str, Buffer]:
        return {role: buffer[:, :, start:stop] for role, buffer in self._buffers.items()}


def _buffers(spec: CacheSpec, capacity: int, memory: MappedMemory) -> dict[str, Buffer]:
    if spec.dtype != "float32":
        raise ValueError(f"rows in numpy buffers are float32, not {spec.dtype}")
    return {
        role: memory.empty((len(group.layers), group.heads, capacity, dim), np.dtype(np.float32))
        for group in spec.groups_of(LayerKind.FULL)
        for role, dim in group.roles()
    }


def _leaves(spec: CacheSpec, buffers: dict[str, Buffer], offset: int) -> list[BufferLeaf]:
    found: dict[int, BufferLeaf] = {}
    for group in spec.groups_of(LayerKind.FULL):
        (k, _), (v, _) = group.roles()
        for n, layer in enumerate(group.layers):
            found[layer] = BufferLeaf(buffers[k][n : n + 1], buffers[v][n : n + 1], offset)
    return [found[layer] for layer in sorted(found)]
