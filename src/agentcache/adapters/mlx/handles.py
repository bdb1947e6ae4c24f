"""Opaque handles to keys and values, and the attention entry point that opens them.

mlx-lm's models hand whatever `cache.update_and_fetch` returns to
`mx.fast.scaled_dot_product_attention`, which they look up when they call it. So a cache may keep
its rows where MLX cannot see them, or bring the rows of many sequences side by side.
"""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from agentcache.adapters.mlx.cpu_attention import MaskArray, attention

Buffer = NDArray[np.float32]
Mask = mx.array | Literal["causal"] | None


class Handle(Protocol):
    """The keys and values of one layer, for one or several sequences."""

    def attend(
        self, q: mx.array, masks: Sequence[Mask], scale: float, sinks: mx.array | None
    ) -> mx.array:
        """Attention of q [sequences, heads, L, dim], each sequence to its own rows alone."""
        ...


class BufferHandle:
    """Rows in numpy buffers: for each sequence keys and values [1, heads, rows, dim]."""

    def __init__(self, parts: Sequence[tuple[Buffer, Buffer]]) -> None:
        self._parts = parts

    def attend(
        self, q: mx.array, masks: Sequence[Mask], scale: float, sinks: mx.array | None
    ) -> mx.array:
        """See `Handle`; evaluated when it returns."""
        queries = np.asarray(q)
        sink = None if sinks is None else np.asarray(sinks)
        out = [
            attention(queries[i : i + 1], k, v, scale=scale, mask=_on_host(mask), sinks=sink)
            for i, ((k, v), mask) in enumerate(zip(self._parts, masks, strict=True))
        ]
        # Laid out [sequences, L, heads, dim], as the kernel leaves it and the projection reads it.
        joined = out[0] if len(out) == 1 else np.concatenate(out)
        return mx.array(joined.swapaxes(1, 2)).swapaxes(1, 2)


class ArrayHandle:
    """Rows in MLX arrays: for each sequence keys and values [1, heads, rows, dim]."""

    def __init__(self, parts: Sequence[tuple[mx.array, mx.array]]) -> None:
        self._parts = parts

    def attend(
        self, q: mx.array, masks: Sequence[Mask], scale: float, sinks: mx.array | None
    ) -> mx.array:
        """See `Handle`; lazy."""
        return mx.concatenate(
            [
                _plain(q[i : i + 1], k, v, scale=scale, mask=mask, sinks=sinks)
                for i, ((k, v), mask) in enumerate(zip(self._parts, masks, strict=True))
            ]
        )


class LatentHandle:
    """Rows in MLX arrays that are keys and values in one: for each sequence [1, heads, rows, dim].

    The model works out the scores of positions itself, for rows that are filled up to the longest.
    """

    def __init__(self, parts: Sequence[mx.array]) -> None:
        self._parts = parts

    def attend(
        self, q: mx.array, masks: Sequence[Mask], scale: float, sinks: mx.array | None
    ) -> mx.array:
        """See `Handle`; lazy."""
        out = []
        for i, (rows, mask) in enumerate(zip(self._parts, masks, strict=True)):
            own = mask[i : i + 1, ..., : rows.shape[2]] if isinstance(mask, mx.array) else mask
            out.append(_plain(q[i : i + 1], rows, rows, scale=scale, mask=own, sinks=sinks))
        return mx.concatenate(out)


class MaskHandle:
    """The attention masks of several sequences, one for each."""

    def __init__(self, parts: Sequence[Mask]) -> None:
        self.parts = parts


_plain: Callable[..., mx.array] = mx.fast.scaled_dot_product_attention


def install() -> None:
    """Let `mx.fast.scaled_dot_product_attention` take handles; arrays go where they went before."""
    global _plain  # noqa: PLW0603  (what it replaces is global, too)
    if mx.fast.scaled_dot_product_attention is not _attend:
        _plain = mx.fast.scaled_dot_product_attention
        mx.fast.scaled_dot_product_attention = _attend  # type: ignore[assignment]


def uninstall() -> None:
    """Put back what `install` found."""
    if mx.fast.scaled_dot_product_attention is _attend:
        mx.fast.scaled_dot_product_attention = _plain


def _attend(
    q: mx.array,
    k: mx.array | BufferHandle | ArrayHandle | LatentHandle,
    v: mx.array | BufferHandle | ArrayHandle | LatentHandle,
    *,
    scale: float,
    mask: Mask | MaskHandle = None,
    sinks: mx.array | None = None,
    **more: object,
) -> mx.array:
    if not isinstance(k, BufferHandle | ArrayHandle | LatentHandle):
        return _plain(q, k, v, scale=scale, mask=mask, sinks=sinks, **more)
    if v is not k:
        raise TypeError("keys and values of different handles")
    masks = mask.parts if isinstance(mask, MaskHandle) else [mask] * q.shape[0]
    return k.attend(q, masks, scale, sinks)


def _on_host(mask: Mask) -> MaskArray | Literal["causal"] | None:
    return np.asarray(mask) if isinstance(mask, mx.array) else mask
