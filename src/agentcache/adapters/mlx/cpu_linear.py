"""Products of a few rows with a large weight: decode steps, and the new tokens of a resumed agent.

OpenBLAS copies a matrix into its own layout before it multiplies, which for a handful of rows costs
more than the product. Blocks of the weight that are small enough take its kernels that do not copy.
"""

from functools import cache, partial

import numpy as np
import numpy.typing as npt

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


@cache
def copyless() -> bool:
    """Whether numpy's BLAS has kernels for small products of many rows that copy nothing."""
    return numpy_kernels() in _COPYLESS


def takes(rows: int, width: int) -> bool:
    """Whether `product` is the better one for `rows` rows of `width` numbers."""
    return 0 < rows <= MOST_ROWS or (copyless() and _copyless_block(rows, width) is not None)


def product(x: FloatArray, weight: FloatArray) -> FloatArray:
    """`x @ weight.T` for `x` [rows, in] and `weight` [out, in], both contiguous: [rows, out]."""
    if len(x) > MOST_ROWS and (block := _copyless_block(*x.shape)):
        return _in_pieces(x, weight, block)
    outs = len(weight)
    out = np.empty((outs, len(x)), np.float32)
    if len(x) == 1:
        np.dot(weight, x[0], out=out[:, 0])
        return out.T
    whole = outs - outs % _BLOCK
    columns = x.T
    if whole:
        blocks = weight[:whole].reshape(-1, _BLOCK, weight.shape[1])
        np.matmul(blocks, columns, out=out[:whole].reshape(-1, _BLOCK, len(x)))
    if whole < outs:
        np.matmul(weight[whole:], columns, out=out[whole:])
    return out.T


def _copyless_block(rows: int, width: int) -> int | None:
    """How many rows of a weight make a product that is not copied; None if too few."""
    each = _padded(rows) * width
    fit = (block for block in _COPYLESS_BLOCKS if block * each <= _COPYLESS_PRODUCT)
    return next(fit, None) if 0 < rows <= _COPYLESS_ROWS else None


def _padded(rows: int) -> int:
    return -(-rows // _LANES) * _LANES


def _in_pieces(x: FloatArray, weight: FloatArray, block: int) -> FloatArray:
    (rows, width), outs = x.shape, len(weight)
    columns = np.zeros((width, _padded(rows)), np.float32)
    columns[:, :rows] = x.T
    out = np.empty((rows, outs), np.float32)
    pieces = [
        partial(_piece, weight[at : at + _PIECE], columns, block, out[:, at : at + _PIECE])
        for at in range(0, outs, _PIECE)
    ]
    run_all(pieces, spread=rows * weight.size > _SPREAD_PRODUCT)
    return out


def _piece(weight: FloatArray, columns: FloatArray, block: int, out: FloatArray) -> None:
    """`weight @ columns` block by block, turned over into `out` [rows, outs]."""
    outs, width = weight.shape
    whole = outs - outs % block
    found = np.empty((outs, columns.shape[1]), np.float32)
    if whole:
        into = found[:whole].reshape(-1, block, columns.shape[1])
        np.matmul(weight[:whole].reshape(-1, block, width), columns, out=into)
    if whole < outs:
        np.matmul(weight[whole:], columns, out=found[whole:])
    np.copyto(out, found[:, : len(out)].T)
