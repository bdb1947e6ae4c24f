"""Rows of any floating dtype as float32, and back."""

import numpy as np
from numpy.typing import NDArray

from agentcache.adapters.codecs.tensors import Role
from agentcache.ports.rows import NUMPY_DTYPE, RowArray

# The sums and products in between stay finite, too.
LARGEST = 2.0**100
_DTYPES = ("float32", "float16", "bfloat16")
_LARGEST_HALF = np.float32(65504)

Floats = NDArray[np.float32]


def need_floats(codec: str, role: Role) -> None:
    """Raises ValueError when `role` is of integers."""
    if role.dtype not in _DTYPES:
        raise ValueError(f"{codec} encodes {', '.join(_DTYPES)}, not {role.dtype}")


def widen(native: RowArray, dtype: str, out: RowArray) -> None:
    """Write numbers of `dtype` into the float32 `out`, of the same shape."""
    if dtype == "bfloat16":
        bits = out.view(np.uint32)
        np.copyto(bits, native)
        np.left_shift(bits, 16, out=bits)
    else:
        np.copyto(out, native)


def narrow(numbers: Floats, dtype: str) -> RowArray:
    """`numbers` in `dtype`, rounded to the nearest; what float16 cannot hold to its largest."""
    if dtype == "bfloat16":
        return bfloat16(numbers)
    if dtype == "float16":
        # Rounding in a rotated basis can take a number beyond.
        return np.clip(numbers, -_LARGEST_HALF, _LARGEST_HALF).astype(np.float16)
    return numbers.astype(NUMPY_DTYPE[dtype], copy=False)


def bfloat16(numbers: Floats) -> NDArray[np.uint16]:
    """The upper halves of the float32 bits, rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(numbers).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
