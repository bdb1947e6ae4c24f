"""Ragged batches: one token each of many sequences in one forward, without padding or merging.

Embeddings, projections, MLP and head see an ordinary batch. What is written and attended to is each
sequence's own cache, so sequences join and leave a batch at no cost.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import mlx.core as mx
import numpy as np

from agentcache.adapters.mlx.arrays import ArrayLeaf, HoldingCache
from agentcache.adapters.mlx.buffers import BufferLeaf
from agentcache.adapters.mlx.handles import (
    ArrayHandle,
    BufferHandle,
    Handle,
    LatentHandle,
    Mask,
    MaskHandle,
)
from agentcache.adapters.mlx.window_leaf import ArrayWindow, BufferWindow

HostLeaf = BufferLeaf | BufferWindow
DeviceLeaf = ArrayLeaf | ArrayWindow


class RaggedLeaf:
    """One layer's caches of several sequences, which a model takes for one cache of a batch.

    `offset` is an array [sequences], as mlx-lm's rope takes it; the rows come back as a handle.
    """

    def __init__(
        self, members: Sequence[HostLeaf] | Sequence[DeviceLeaf], offset: mx.array
    ) -> None:
        self._members = members
        self.offset = offset

    @classmethod
    def of(cls, members: Iterable[object], offset: mx.array) -> "RaggedLeaf":
        """The caches `members` as one. Raises TypeError for kinds that cannot be batched."""
        found = tuple(members)
        on_host = [leaf for leaf in found if isinstance(leaf, BufferLeaf | BufferWindow)]
        if len(on_host) == len(found):
            return cls(on_host, offset)
        if all(isinstance(leaf, HoldingCache | ArrayWindow) for leaf in found):
            return cls(cast(tuple[DeviceLeaf, ...], found), offset)
        raise TypeError(f"{type(found[0]).__name__} cannot be in a ragged batch")

    def update_and_fetch(
        self, keys: mx.array, values: mx.array
    ) -> tuple[Handle, Handle | mx.array]:
        """Add one row [sequences, heads, 1, dim] to each sequence's own cache."""
        if keys.shape[2] != 1:
            raise ValueError(f"a ragged batch runs one token of each, not {keys.shape[2]}")
        found = self._appended(keys, values)
        self.offset = self.offset + 1
        return found

    def _appended(self, keys: mx.array, values: mx.array) -> tuple[Handle, Handle | mx.array]:
        handle = _appended(self._members, keys, values)
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


class LatentRaggedLeaf(RaggedLeaf):
    """For models that keep latents as keys and positions as values, and multiply the latter.

    The positions, a small part of a row, come filled up to the longest sequence.
    """

    def _appended(self, keys: mx.array, values: mx.array) -> tuple[Handle, Handle | mx.array]:
        if any(isinstance(leaf, HostLeaf | ArrayWindow) for leaf in self._members):
            raise TypeError("only rows of full layers in MLX arrays can be latents")
        rows = [
            leaf.update_and_fetch(keys[n : n + 1], values[n : n + 1])
            for n, leaf in enumerate(cast(Sequence[ArrayLeaf], self._members))
        ]
        longest = max(positions.shape[2] for _, positions in rows)
        filled = [_filled(positions, longest) for _, positions in rows]
        return LatentHandle([latents for latents, _ in rows]), mx.concatenate(filled)


def _filled(rows: mx.array, count: int) -> mx.array:
    """With zeros up to `count` rows."""
    return mx.pad(rows, [(0, 0), (0, 0), (0, count - rows.shape[2]), (0, 0)])


def _appended(
    members: Sequence[HostLeaf] | Sequence[DeviceLeaf], keys: mx.array, values: mx.array
) -> Handle:
    host = [leaf for leaf in members if isinstance(leaf, BufferLeaf | BufferWindow)]
    if host:
        mx.eval(keys, values)  # once for the whole batch
        k, v = np.asarray(keys), np.asarray(values)
        return BufferHandle(
            [leaf.append(k[n : n + 1], v[n : n + 1]) for n, leaf in enumerate(host)]
        )
    device = [leaf for leaf in members if not isinstance(leaf, BufferLeaf | BufferWindow)]
    return ArrayHandle(
        [leaf.update_and_fetch(keys[n : n + 1], values[n : n + 1]) for n, leaf in enumerate(device)]
    )
