"""Ragged batches: one token each of many sequences in one forward, without padding or merging.

Embeddings, projections, MLP and head see an ordinary batch. What is written and attended to is each
sequence's own cache, so sequences join and leave a batch at no cost.
"""

from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np

from agentcache.adapters.mlx.buffers import BufferLeaf
from agentcache.adapters.mlx.handles import ArrayHandle, BufferHandle, Handle, Mask, MaskHandle
from agentcache.adapters.mlx.live import Leaf, LiveCache


class RaggedLeaf:
    """One layer's caches of several sequences, which a model takes for one cache of a batch.

    `offset` is an array [sequences], as mlx-lm's rope takes it; the rows come back as a handle.
    """

    def __init__(self, members: Sequence[Leaf], offset: mx.array) -> None:
        self._members = members
        self.offset = offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Handle, Handle]:
        """Add one row [sequences, heads, 1, dim] to each sequence's own cache."""
        if keys.shape[2] != 1:
            raise ValueError(f"a ragged batch runs one token of each, not {keys.shape[2]}")
        handle = _appended(self._members, keys, values)
        self.offset = self.offset + 1
        return handle, handle

    def make_mask(
        self,
        N: int,  # noqa: N803  (mlx-lm's name)
        return_array: bool = False,
        window_size: int | None = None,
    ) -> MaskHandle | None:
        """Each sequence's own mask; None where none of them needs one."""
        masks: list[Mask] = [
            leaf.make_mask(N, return_array=return_array, window_size=window_size)
            for leaf in self._members
        ]
        return None if all(mask is None for mask in masks) else MaskHandle(masks)

    def size(self) -> int:
        """Rows of the longest sequence."""
        return max(leaf.offset for leaf in self._members)

    def empty(self) -> bool:
        """Whether there are no rows at all."""
        return self.size() == 0


def ragged_leaves(caches: Sequence[LiveCache]) -> Iterator[RaggedLeaf]:
    """The leaves of a batch of `caches`, in the model's order."""
    offset = mx.array([cache.length for cache in caches])
    for members in zip(*(cache.leaves for cache in caches), strict=True):
        yield RaggedLeaf(members, offset)


def _appended(members: Sequence[Leaf], keys: mx.array, values: mx.array) -> Handle:
    buffers = [leaf for leaf in members if isinstance(leaf, BufferLeaf)]
    if buffers:
        return _to_buffers(buffers, keys, values)
    arrays = [leaf for leaf in members if not isinstance(leaf, BufferLeaf)]
    parts = [
        leaf.update_and_fetch(keys[n : n + 1], values[n : n + 1]) for n, leaf in enumerate(arrays)
    ]
    return ArrayHandle(parts)


def _to_buffers(members: Sequence[BufferLeaf], keys: mx.array, values: mx.array) -> BufferHandle:
    mx.eval(keys, values)  # once for the whole batch
    k, v = np.asarray(keys), np.asarray(values)
    for n, leaf in enumerate(members):
        leaf.append(k[n : n + 1], v[n : n + 1])
    return BufferHandle([leaf.rows() for leaf in members])
