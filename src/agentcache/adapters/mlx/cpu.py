"""The CPU path: attention, SwiGLU and few-row products in numpy, where MLX runs float32 on a CPU.

`install()` replaces `mx.fast.scaled_dot_product_attention`, which mlx-lm looks up when it calls
it, mlx-lm's `swiglu`, which its models import by name, and the methods of MLX's `Linear` and
`Embedding` that multiply with a weight. Whatever the kernels do not cover
(other dtypes, another device or stream, tracing by `mx.compile` or `mx.vmap`) goes to the function
that stood there before. Arrays are evaluated on the calling thread. Gradients do not pass through
numpy: uninstall before training.
"""

import sys
from collections.abc import Callable
from typing import Literal

import mlx.core as mx
import numpy as np
from attrs import frozen
from mlx.nn.layers.base import Module
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx_lm.models import activations

from agentcache.adapters.mlx import blas, cpu_activation, cpu_attention, cpu_linear

# Smaller ones cost less in MLX than waiting for the operands does.
_SWIGLU_WORTH = 4096
_PRODUCT_WORTH = 64 * 1024

Attention = Callable[..., mx.array]
Mask = mx.array | Literal["causal"] | None
Layer = Callable[..., mx.array]
Swiglu = Callable[[mx.array, mx.array], mx.array]


@frozen
class _Patch:
    """What stood in each place before, what stands there now, and numpy's threads before."""

    attention_before: Attention
    attention: Attention
    swiglu_before: Swiglu
    swiglu: Swiglu
    linear_before: Layer
    as_linear_before: Layer
    numpy_threads: int | None


_patch: _Patch | None = None


def install() -> None:
    """Put the numpy kernels in place; a second call does nothing.

    numpy's own BLAS is set to one thread meanwhile, since the kernels spread their work themselves.
    """
    global _patch  # noqa: PLW0603  (what it replaces is global, too)
    if _patch is not None:
        return
    attention_before, swiglu_before = mx.fast.scaled_dot_product_attention, activations.swiglu
    _patch = _Patch(
        attention_before,
        _attention_over(attention_before),
        swiglu_before,
        _swiglu_over(swiglu_before),
        Linear.__call__,
        Embedding.as_linear,
        blas.set_numpy_threads(1),
    )
    mx.fast.scaled_dot_product_attention = _patch.attention
    _replace_everywhere("swiglu", swiglu_before, _patch.swiglu)
    setattr(Linear, "__call__", _product_over(_patch.linear_before))  # noqa: B010
    setattr(Embedding, "as_linear", _product_over(_patch.as_linear_before))  # noqa: B010


def uninstall() -> None:
    """Put back what `install()` found; without one, does nothing.

    Raises RuntimeError, and changes nothing, while somebody else's wrapper stands over ours.
    """
    global _patch  # noqa: PLW0603  (what it replaces is global, too)
    if _patch is None:
        return
    if mx.fast.scaled_dot_product_attention is not _patch.attention:
        raise RuntimeError("attention was wrapped again after install(): unwrap that first")
    mx.fast.scaled_dot_product_attention = _patch.attention_before
    _replace_everywhere("swiglu", _patch.swiglu, _patch.swiglu_before)
    setattr(Linear, "__call__", _patch.linear_before)  # noqa: B010
    setattr(Embedding, "as_linear", _patch.as_linear_before)  # noqa: B010
    if _patch.numpy_threads is not None:
        blas.set_numpy_threads(_patch.numpy_threads)
    _patch = None


def _attention_over(fallback: Attention) -> Attention:
    def scaled_dot_product_attention(
        q: mx.array,
        k: mx.array,
        v: mx.array,
        *,
        scale: float,
        mask: Mask = None,
        sinks: mx.array | None = None,
        **options: object,
    ) -> mx.array:
        if not options and _float32_on_cpu(q, k, v):
            usable_mask = _readable(mask) if isinstance(mask, mx.array) else mask
            usable_sinks = None if sinks is None else _readable(sinks)
            if _evaluate(q, k, v, usable_mask, usable_sinks):
                return _numpy_attention(q, k, v, scale, usable_mask, usable_sinks)
        return fallback(q, k, v, scale=scale, mask=mask, sinks=sinks, **options)

    return scaled_dot_product_attention


def _numpy_attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    scale: float,
    mask: Mask,
    sinks: mx.array | None,
) -> mx.array:
    """Evaluated arrays are seen by numpy where they lie; only the result is copied."""
    out = cpu_attention.attention(
        np.asarray(q),
        np.asarray(k),
        np.asarray(v),
        scale=scale,
        mask=np.asarray(mask) if isinstance(mask, mx.array) else mask,
        sinks=None if sinks is None else np.asarray(sinks),
    )
    return mx.array(out.swapaxes(1, 2)).swapaxes(1, 2)


def _swiglu_over(fallback: Swiglu) -> Swiglu:
    def swiglu(gate: mx.array, x: mx.array) -> mx.array:
        fits = gate.size >= _SWIGLU_WORTH and gate.shape == x.shape and _float32_on_cpu(gate, x)
        if fits and _evaluate(gate, x):
            return mx.array(cpu_activation.swiglu(np.asarray(gate), np.asarray(x)))
        return fallback(gate, x)

    return swiglu


def _product_over(fallback: Layer) -> Layer:
    def product(layer: Module, x: mx.array) -> mx.array:
        weight: mx.array = layer["weight"]
        rows = x.size // max(1, x.shape[-1])
        fits = weight.size >= _PRODUCT_WORTH and cpu_linear.takes(rows, weight.shape[-1])
        if (
            not fits
            or "bias" in layer
            or not _float32_on_cpu(x, weight)
            or not _evaluate(x, weight)
        ):
            return fallback(layer, x)
        out = cpu_linear.product(np.asarray(x).reshape(rows, -1), np.asarray(weight))
        # In its final shape, so that nothing is left to be computed, which takes another thread.
        return mx.array(out.reshape(*x.shape[:-1], len(weight)))

    return product


def _readable(array: mx.array) -> mx.array:
    """A mask or sinks in a dtype that numpy shares with MLX."""
    return array if array.dtype in (mx.bool_, mx.float32) else array.astype(mx.float32)


def _float32_on_cpu(*arrays: mx.array) -> bool:
    return mx.default_device() == mx.cpu and all(array.dtype == mx.float32 for array in arrays)


def _evaluate(*arrays: object) -> bool:
    """Compute the arrays here and now; False while MLX is tracing, when they have no values."""
    try:
        mx.eval(*arrays)
    except ValueError:
        return False
    return True


def _replace_everywhere(name: str, old: object, new: object) -> None:
    """Rebind `name` in every loaded module that holds `old`: `from m import f` makes copies."""
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", {})
        if names.get(name) is old:
            names[name] = new
