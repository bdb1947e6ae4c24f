"""Scaled dot-product attention in numpy, for MLX's CPU backend whose exp and matmuls are slow.

Pure numpy in, pure numpy out. The arithmetic is float32 throughout; results differ from MLX's own
by rounding only. BLAS does the matmuls, numpy's vectorised exp the softmax, in place.
"""

from functools import lru_cache, partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from agentcache.adapters.mlx.cpu_linear import copyless
from agentcache.adapters.mlx.cpu_threads import run_all

FloatArray = npt.NDArray[np.float32]
MaskArray = npt.NDArray[np.bool_ | np.float32]
Mask = MaskArray | Literal["causal"] | None

# Hidden scores get the lowest finite number, as in MLX: a row that sees nothing averages all of V.
_HIDDEN = np.finfo(np.float32).min
# Query rows of a tile and scores in it: the scores of one tile should stay in a core's L2 cache.
_TILE_ROWS = 192
_TILE_SCORES = 1 << 20
# Below this many scores, starting threads costs more than they save.
_SPREAD_SCORES = 1 << 18
# OpenBLAS packs K anew for a few rows against many keys; in blocks of 64 keys it does not (2.5x).
_FEW_ROWS = 12
_KEY_BLOCK = 64
# Its kernels for AVX-512 do not for up to 32 rows either, in these blocks of keys and of values:
# then a few queries are cut into tiles of so many rows, enough of them for every thread.
_SOME_ROWS, _TILE_SOME = 32, 24
_SOME_KEY_BLOCK, _VALUE_BLOCK = 32, 256


def attention(
    q: FloatArray,
    k: FloatArray,
    v: FloatArray,
    *,
    scale: float,
    mask: Mask = None,
    sinks: FloatArray | None = None,
) -> FloatArray:
    """`softmax(q @ k.T * scale + mask) @ v` as `mx.fast.scaled_dot_product_attention` defines it.

    q is [B, Hq, L, D], k [B, Hkv, S, D], v [B, Hkv, S, Dv] with Hq a multiple of Hkv; all may be
    strided views, and k and v are never copied. `mask` is "causal" (the last query sees the last
    key), a boolean array (True = seen) or an additive one, broadcastable to [B, Hq, L, S]. `sinks`
    [Hq] are scores that take part in the softmax and have no value. A row whose keys are all
    hidden averages V (boolean, causal) or is NaN (additive); with sinks it is 0.

    Returns [B, Hq, L, Dv] as a view of a contiguous [B, L, Hq, Dv], which is how the output
    projection reads it. Raises ValueError for shapes that do not fit and unknown mask names.
    """
    if isinstance(mask, str) and mask != "causal":
        raise ValueError(f"the mask is 'causal', an array or None, not {mask!r}")
    heads, length, kv_heads, keys = q.shape[1], q.shape[2], k.shape[1], k.shape[2]
    if heads % kv_heads or k.shape[:3] != v.shape[:3]:
        raise ValueError(f"heads or lengths do not fit: q {q.shape}, k {k.shape}, v {v.shape}")
    if not keys:
        return np.zeros((*q.shape[:3], v.shape[3]), np.float32)
    if length == 1 and (mask is None or isinstance(mask, str)):
        return _decode(q, k, v, scale, sinks)
    return _prefill(q, k, v, scale, mask, sinks)


def _decode(
    q: FloatArray, k: FloatArray, v: FloatArray, scale: float, sinks: FloatArray | None
) -> FloatArray:
    """One query a sequence that sees every key: the heads of a group are the rows of a matmul."""
    batch, heads, _, dim = q.shape
    group = heads // k.shape[1]
    weights = _scores((q * float(scale)).reshape(batch, -1, group, dim), k)
    totals = _exponentiate(weights, None if sinks is None else sinks.reshape(-1, group, 1))
    out: FloatArray = weights @ v
    out /= totals
    return out.reshape(batch, heads, 1, -1)


def _prefill(
    q: FloatArray,
    k: FloatArray,
    v: FloatArray,
    scale: float,
    mask: Mask,
    sinks: FloatArray | None,
) -> FloatArray:
    """Tiles of one group of heads and a chunk of queries, over the keys that the chunk can see."""
    (batch, heads, length, dim), (kv_heads, keys) = q.shape, k.shape[1:3]
    group = heads // kv_heads
    out = np.empty((batch, length, heads, v.shape[3]), np.float32).swapaxes(1, 2)
    if isinstance(mask, str) and length > keys:
        mask = np.tri(length, keys, keys - length, dtype=np.bool_)
    # Splitting an axis of a strided or broadcast array gives a view, never a copy.
    queries = q.reshape(batch, kv_heads, group, length, dim)
    outs = out.reshape(batch, kv_heads, group, length, -1)
    masks = None if mask is None or isinstance(mask, str) else _by_group(mask, queries.shape, keys)
    sinks = None if sinks is None else sinks.reshape(kv_heads, group, 1, 1)
    chunk = _queries_of_a_tile(group, length, keys)

    def tile(start: int, b: int, h: int) -> None:
        stop = min(start + chunk, length)
        seen = keys - length + stop if isinstance(mask, str) else keys
        _tile(
            np.multiply(queries[b, h, :, start:stop], float(scale), order="C"),
            k[b, h, :seen],
            v[b, h, :seen],
            mask if masks is None else masks[b, h, :, start:stop],
            None if sinks is None else sinks[h],
            outs[b, h, :, start:stop],
        )

    # The last chunks see the most keys: started first, they do not leave one thread to wait for.
    starts = reversed(range(0, length, chunk))
    tiles = [partial(tile, s, b, h) for s in starts for b, h in np.ndindex(batch, kv_heads)]
    run_all(tiles, spread=batch * heads * length * keys > _SPREAD_SCORES)
    return out


def _queries_of_a_tile(group: int, length: int, keys: int) -> int:
    most = max(1, min(_TILE_ROWS, _TILE_SCORES // keys) // group)
    if length <= most and group <= _TILE_SOME and copyless():
        return _TILE_SOME // group
    return most


def _tile(
    q: FloatArray,
    k: FloatArray,
    v: FloatArray,
    mask: Mask,
    sinks: FloatArray | None,
    out: FloatArray,
) -> None:
    """One group of heads: scaled q [G, rows, D] over k [S, D] and v [S, Dv] into out."""
    group, rows, dim = q.shape
    if mask is not None and not isinstance(mask, str):
        seen = _span_seen(mask)
        mask, k, v = mask[..., seen], k[seen], v[seen]
    weights = _scores(q.reshape(-1, dim), k)
    by_head = weights.reshape(group, rows, -1)
    _hide(by_head, mask)
    totals = _exponentiate(by_head, sinks)
    np.divide(_weighted(weights, v).reshape(out.shape), totals, out=out)


def _scores(rows: FloatArray, k: FloatArray) -> FloatArray:
    """rows [..., R, D] @ k [..., S, D] transposed, as [..., R, S]."""
    count, keys = rows.shape[-2], k.shape[-2]
    block = _KEY_BLOCK if count <= _FEW_ROWS else _SOME_KEY_BLOCK
    some = 1 < count <= _FEW_ROWS or (_FEW_ROWS < count <= _SOME_ROWS and copyless())
    if not some or keys <= 4 * block:
        return rows @ k.swapaxes(-1, -2)
    scores = np.empty((*rows.shape[:-1], keys), np.float32)
    blocks, rest = keys // block, keys % block
    whole = keys - rest
    split = (*k.shape[:-2], blocks, block, k.shape[-1])
    into = scores[..., :whole].reshape(*scores.shape[:-1], blocks, block).swapaxes(-2, -3)
    np.matmul(rows[..., None, :, :], k[..., :whole, :].reshape(split).swapaxes(-1, -2), out=into)
    if rest:
        np.matmul(rows, k[..., whole:, :].swapaxes(-1, -2), out=scores[..., whole:])
    return scores


def _weighted(weights: FloatArray, v: FloatArray) -> FloatArray:
    """weights [R, S] @ v [S, Dv]."""
    (count, keys), dim = weights.shape, v.shape[1]
    blocks = keys // _VALUE_BLOCK
    if blocks < 2 or count > _SOME_ROWS or not copyless():
        found: FloatArray = weights @ v
        return found
    whole = blocks * _VALUE_BLOCK
    rows = weights[:, :whole].reshape(count, blocks, _VALUE_BLOCK).swapaxes(0, 1)
    found = np.matmul(rows, v[:whole].reshape(blocks, _VALUE_BLOCK, dim)).sum(0)
    if whole < keys:
        found += weights[:, whole:] @ v[whole:]
    return found


def _exponentiate(scores: FloatArray, sinks: FloatArray | None) -> FloatArray:
    """Turn scores [..., S] into softmax numerators in place; their sums [..., 1] with sinks."""
    peaks = scores.max(-1, keepdims=True)
    if sinks is not None:
        np.maximum(peaks, sinks, out=peaks)
    with np.errstate(invalid="ignore"):  # rows whose keys an additive mask hides all are NaN
        np.subtract(scores, peaks, out=scores)
        np.exp(scores, out=scores)
    totals: FloatArray = scores.sum(-1, keepdims=True)
    if sinks is not None:
        totals += np.exp(sinks - peaks)
    return totals


def _by_group(mask: MaskArray, shape: tuple[int, ...], keys: int) -> MaskArray:
    """A broadcastable mask as a view [B, Hkv, G, L, S]."""
    batch, kv_heads, group, length, _ = shape
    full = np.broadcast_to(mask, (batch, kv_heads * group, length, keys))
    return full.reshape(batch, kv_heads, group, length, keys)


def _span_seen(mask: MaskArray) -> slice:
    """The keys from the first to the last that some row of [G, rows, S] sees.

    All keys for an additive mask, and where a row sees none, for it averages over all.
    """
    if mask.dtype != np.bool_ or not mask.any(-1).all():
        return slice(None)
    seen = np.flatnonzero(mask.any((0, 1)))
    return slice(int(seen[0]), int(seen[-1]) + 1)


def _hide(scores: FloatArray, mask: Mask) -> None:
    """Apply the mask to scores [G, rows, S] in place; causal rows are the last `rows` of S."""
    if mask is None:
        return
    if isinstance(mask, str):
        rows = scores.shape[1]
        np.copyto(scores[..., -rows:], _HIDDEN, where=_later_keys(rows))
    elif mask.dtype == np.bool_:
        np.copyto(scores, _HIDDEN, where=np.logical_not(mask))
    else:
        scores += mask


@lru_cache(maxsize=8)
def _later_keys(rows: int) -> npt.NDArray[np.bool_]:
    return np.triu(np.ones((rows, rows), np.bool_), 1)
