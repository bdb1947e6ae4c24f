"""Products of a few rows with a large weight: decode steps, and the new tokens of a resumed agent.

OpenBLAS copies a matrix into its own layout before it multiplies, which for a handful of rows costs
more than the product. Blocks of the weight that are small enough take its kernels that do not copy.
"""

from collections.abc import Sequence
from functools import cache, partial

import numpy as np
import numpy.typing as npt
from attrs import frozen

from agentcache.adapters.mlx.blas import numpy_kernels
from agentcache.adapters.mlx.cpu_threads import run_all

FloatArray = npt.NDArray[np.float32]

MOST_ROWS = 8  # with more, copying the weight pays, unless the kernels say otherwise
_BLOCK = 64
# Kernels that do not copy: for AVX-512, up to a million multiplications, best with 16 columns.
_COPYLESS = {"SkylakeX", "Cooperlake", "SapphireRapids"}
_COPYLESS_PRODUCT, _LANES, _COPYLESS_ROWS = 100**3, 16, 64
_COPYLESS_BLOCKS = (32, 16)
_PIECE = 96  # rows of a weight that a thread takes at a time
_SPREAD_PRODUCT = 8_000_000
# Numbers of a weight that are worth a thread's while for a few rows, and shares of it at most.
_SHARE, _MOST_SHARES = 160_000, 16


@cache
def copyless() -> bool:
    """Whether numpy's BLAS has kernels for small products of many rows that copy nothing."""
    return numpy_kernels() in _COPYLESS


def takes(rows: int, width: int) -> bool:
    """Whether `product` is the better one for `rows` rows of `width` numbers."""
    return 0 < rows <= MOST_ROWS or (copyless() and _tile(rows, width) is not None)


def product(x: FloatArray, weight: FloatArray) -> FloatArray:
    """`x @ weight.T` for `x` [rows, in] and `weight` [out, in], both contiguous: [rows, out]."""
    if len(x) > MOST_ROWS and (tile := _tile(*x.shape)):
        return _in_pieces(x, weight, tile)
    out = np.empty((len(weight), len(x)), np.float32)
    run_all([partial(_few, x, weight[at], out[at]) for at in shares(*weight.shape)], spread=True)
    return out.T


def _few(x: FloatArray, weight: FloatArray, out: FloatArray) -> None:
    """`weight` @ `x.T` into `out` [out, rows], in blocks that are not copied."""
    if len(x) == 1:
        np.dot(weight, x[0], out=out[:, 0])
        return
    whole = len(weight) - len(weight) % _BLOCK
    columns = x.T
    if whole:
        blocks = weight[:whole].reshape(-1, _BLOCK, weight.shape[1])
        np.matmul(blocks, columns, out=out[:whole].reshape(-1, _BLOCK, len(x)))
    if whole < len(weight):
        np.matmul(weight[whole:], columns, out=out[whole:])


@cache
def shares(outs: int, width: int) -> Sequence[slice]:
    """How a weight is cut up for the threads: it depends on its shape alone, so that their number
    changes no bit. Powers of two, which no thread is the last one to work at.
    """
    most = min(_MOST_SHARES, outs * width // _SHARE)
    count = 1 << max(0, most.bit_length() - 1)
    size = -(-outs // (count * _BLOCK)) * _BLOCK
    return [slice(at, at + size) for at in range(0, outs, size)]


@frozen
class _Tile:
    """What a product that is not copied is made of: `block` rows of the weight, `rows` of x."""

    block: int
    rows: int
    groups: int


def _tile(rows: int, width: int) -> _Tile | None:
    """The tile for so many rows: least padding, then most rows; None if no product fits."""
    if not 0 < rows <= _COPYLESS_ROWS:
        return None
    tiles = [
        _Tile(block, each, -(-rows // each))
        for each in range(_LANES, _padded(rows) + 1, _LANES)
        for block in _COPYLESS_BLOCKS
        if block * each * width <= _COPYLESS_PRODUCT
    ]
    return min(tiles, key=lambda one: (one.rows * one.groups, one.groups, -one.block), default=None)


def _padded(rows: int) -> int:
    return -(-rows // _LANES) * _LANES


def _in_pieces(x: FloatArray, weight: FloatArray, tile: _Tile) -> FloatArray:
    (rows, width), outs = x.shape, len(weight)
    padded = np.zeros((tile.groups * tile.rows, width), np.float32)
    padded[:rows] = x
    columns = np.ascontiguousarray(padded.reshape(tile.groups, tile.rows, width).swapaxes(1, 2))
    out = np.empty((rows, outs), np.float32)
    pieces = [
        partial(_piece, weight[at : at + _PIECE], columns, tile.block, out[:, at : at + _PIECE])
        for at in range(0, outs, _PIECE)
    ]
    run_all(pieces, spread=rows * weight.size > _SPREAD_PRODUCT)
    return out


def _piece(weight: FloatArray, columns: FloatArray, block: int, out: FloatArray) -> None:
    """`weight` @ each group of `columns` block by block, turned over into `out` [rows, outs].

    A block of the weight meets all groups while it is in the processor's cache.
    """
    outs, width = weight.shape
    whole = outs - outs % block
    if whole:
        found = weight[:whole].reshape(-1, 1, block, width) @ columns
        out[:, :whole] = found.transpose(1, 3, 0, 2).reshape(-1, whole)[: len(out)]
    if whole < outs:
        rest = weight[whole:] @ columns
        out[:, whole:] = rest.swapaxes(1, 2).reshape(-1, outs - whole)[: len(out)]
