"""Products of a few rows with a large weight: what one decode step is made of.

OpenBLAS copies a matrix into its own layout before it multiplies, which for a handful of rows costs
more than the product. Blocks of the weight that are small enough take its kernels that do not copy.
"""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

MOST_ROWS = 8  # with more, copying the weight pays
_BLOCK = 64


def product(x: FloatArray, weight: FloatArray) -> FloatArray:
    """`x @ weight.T` for `x` [rows, in] and `weight` [out, in], both contiguous: [rows, out]."""
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
