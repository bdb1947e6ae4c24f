"""Layers that attend to the last rows only, in temporal order, in arrays that do not grow for good.

mlx-lm keeps such rows in a ring. Here they lie in order in an array with some slack; when that is
full, the last ones move to the front of a new one. So a restored sequence and a live one attend to
the same rows in the same order, and whoever holds the old array can go back to it.
"""

from abc import ABC, abstractmethod
from functools import partial
from typing import Generic, TypeVar

import mlx.core as mx
import numpy as np
from mlx_lm.models.base import create_causal_mask

from agentcache.adapters.mlx.handles import Buffer, BufferHandle, Mask
from agentcache.adapters.mlx.live import Undo
from agentcache.domain.spec import window_room

Array = TypeVar("Array", Buffer, mx.array)


class WindowLeaf(ABC, Generic[Array]):
    """The last rows of one layer: the first `held` of keys and values [1, heads, room, dim].

    `offset` counts all rows that ever were.
    """

    keys: Array
    values: Array

    def __init__(self, window: int, capacity: int) -> None:
        self.window, self.capacity = window, capacity
        self.offset = self.held = 0

    @abstractmethod
    def _blank(self, like: Array, rows: int) -> Array:
        """An array for `rows` rows such as those in `like`."""

    @abstractmethod
    def _joined(self, first: Array, second: Array) -> Array:
        """The rows of both, in a new array."""

    @property
    @abstractmethod
    def shown(self) -> int:
        """How many of the rows that are there the next ones attend to."""

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.keys.nbytes + self.values.nbytes if self.held else 0

    def put(self, keys: Array, values: Array, held: int, offset: int) -> None:
        """Go on with these arrays, which hold `held` rows."""
        self.keys, self.values, self.held, self.offset = keys, values, held, offset

    def clear(self) -> None:
        """Forget everything."""
        self.held = self.offset = 0

    def append(self, keys: Array, values: Array) -> tuple[Array, Array]:
        """Add rows [1, heads, L, dim]; returns all that they attend to, themselves included."""
        count, shown = keys.shape[2], self.shown
        if not self.held or self.held + count > self.keys.shape[2]:
            if shown + count > self._room:
                return self._append_many(keys, values)
            self._move(shown, keys, values)
        stop = self.held + count
        self.keys[:, :, self.held : stop] = keys
        self.values[:, :, self.held : stop] = values
        self.held, self.offset = stop, self.offset + count
        seen = slice(stop - count - shown, stop)
        return self.keys[:, :, seen], self.values[:, :, seen]

    def last(self, count: int) -> tuple[Array, Array]:
        """The last `count` rows."""
        rows = slice(self.held - count, self.held)
        return self.keys[:, :, rows], self.values[:, :, rows]

    def mark(self) -> Undo:
        """What puts it back: rows are only ever added behind those that an array holds."""
        if not self.held:
            return self.clear
        return partial(self.put, self.keys, self.values, self.held, self.offset)

    @property
    def _room(self) -> int:
        return min(window_room(self.window), self.capacity)

    def _move(self, count: int, keys: Array, values: Array) -> None:
        """The last `count` rows to the front of new arrays."""
        moved = self._blank(keys, self._room), self._blank(values, self._room)
        if count:
            for new, old in zip(moved, self.last(count), strict=True):
                new[:, :, :count] = old
        self.put(moved[0], moved[1], count, self.offset)

    def _append_many(self, keys: Array, values: Array) -> tuple[Array, Array]:
        """Rows for which there is no room: all are attended to now, the last are kept."""
        count = keys.shape[2]
        if self.shown:
            before = self.last(self.shown)
            keys, values = self._joined(before[0], keys), self._joined(before[1], values)
        kept = min(self.window, keys.shape[2])
        moved = self._blank(keys, self._room), self._blank(values, self._room)
        for new, old in zip(moved, (keys, values), strict=True):
            new[:, :, :kept] = old[:, :, -kept:]
        self.put(moved[0], moved[1], kept, self.offset + count)
        return keys, values


class HostWindow(WindowLeaf[Buffer]):
    """In numpy buffers."""

    def update_and_fetch(
        self, keys: mx.array, values: mx.array
    ) -> tuple[BufferHandle, BufferHandle]:
        """Compute and add rows [1, heads, L, dim]."""
        mx.eval(keys, values)
        handle = BufferHandle([self.append(np.asarray(keys), np.asarray(values))])
        return handle, handle

    def _blank(self, like: Buffer, rows: int) -> Buffer:
        return np.empty((*like.shape[:2], rows, like.shape[3]), np.float32)

    def _joined(self, first: Buffer, second: Buffer) -> Buffer:
        return np.concatenate([first, second], axis=2)


class DeviceWindow(WindowLeaf[mx.array]):
    """In MLX arrays."""

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Add rows [1, heads, L, dim]."""
        return self.append(keys, values)

    def _blank(self, like: mx.array, rows: int) -> mx.array:
        return mx.zeros((*like.shape[:2], rows, like.shape[3]), like.dtype)

    def _joined(self, first: mx.array, second: mx.array) -> mx.array:
        return mx.concatenate([first, second], axis=2)


class _Rotating(WindowLeaf[Array]):
    """What models see in mlx-lm's `RotatingKVCache`."""

    @property
    def shown(self) -> int:
        """A row and the `window` - 1 before it."""
        return min(self.held, self.window - 1)

    def make_mask(
        self,
        N: int,  # noqa: N803  (mlx-lm's name)
        window_size: int | None = None,
        return_array: bool = False,
    ) -> Mask:
        """The mask for `N` more rows, as mlx-lm's rotating cache makes it for rows in order."""
        window, before = window_size or self.window, min(self.window - 1, self.offset)
        mask: Mask = None
        if N > 1:
            if before + N <= window and not return_array:
                return "causal"
            mask = create_causal_mask(N, before, window_size=window)
        elif before + 1 > window:
            mask = mx.arange(before + 1) >= before + 1 - window
        return mask

    def size(self) -> int:
        """Rows that count."""
        return min(self.offset, self.window)

    def empty(self) -> bool:
        """Whether there are none."""
        return self.offset == 0


class _Chunked(WindowLeaf[Array]):
    """What models see in mlx-lm's `ChunkedKVCache`; they make the masks themselves."""

    @property
    def shown(self) -> int:
        """The rows of a whole chunk."""
        return min(self.offset, self.window)

    @property
    def start_position(self) -> int:
        """The position of the first row that is attended to."""
        return self.offset - self.shown

    def maybe_trim_front(self) -> None:
        """No more is ever shown than the model asks for here."""


class BufferWindow(HostWindow, _Rotating[Buffer]):
    """A sliding window in numpy buffers."""


class ArrayWindow(DeviceWindow, _Rotating[mx.array]):
    """A sliding window in MLX arrays."""


class BufferChunk(HostWindow, _Chunked[Buffer]):
    """The last rows of chunked attention in numpy buffers."""


class ArrayChunk(DeviceWindow, _Chunked[mx.array]):
    """The last rows of chunked attention in MLX arrays."""


AnyWindow = BufferWindow | ArrayWindow | BufferChunk | ArrayChunk
