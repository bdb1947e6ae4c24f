"""An orthonormal rotation that spreads what stands out in a head over all of its numbers.

Rounding to few levels costs least when the numbers of a group are of one size. The rotation is the
Kronecker product of two transforms, each symmetric and its own inverse, and so is the product:

- Sylvester's Hadamard matrix over the largest power of two in the dim, by butterflies;
- the discrete Hartley transform cos(2πjk/n) + sin(2πjk/n) over what odd factor n is left, by n
  multiplications a number: 5 for dims 40 and 80, 3 for 96, 7 for 112.

A matrix product would be no faster, and BLAS sums a row in another order when it has other
neighbours: here each number comes from the same additions in the same order, whatever the shape.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def rotated(numbers: Floats) -> Floats:
    """Rotate `numbers`, [heads, dim, columns], each column of a head by itself; twice undoes it.

    May overwrite `numbers`. What overflows comes out as infinite or NaN.
    """
    heads, dim, _ = numbers.shape
    if not numbers.size:
        return numbers
    odd = dim // _power_of_two(dim)
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = _butterflies(numbers, heads * dim, odd)
        if odd > 1:
            numbers = _hartley(numbers, odd)
        numbers *= np.float32(dim**-0.5)
    return numbers


def _power_of_two(dim: int) -> int:
    return dim & -dim


def _butterflies(numbers: Floats, items: int, half: int) -> Floats:
    """Sylvester's matrix over blocks of `half` numbers, which double until they are the head."""
    shape, spare = numbers.shape, np.empty_like(numbers)
    while half < shape[1]:
        pairs = (items // (2 * half), 2, half, shape[2])
        before, after = numbers.reshape(pairs), spare.reshape(pairs)
        np.add(before[:, 0], before[:, 1], out=after[:, 0])
        np.subtract(before[:, 0], before[:, 1], out=after[:, 1])
        numbers, spare, half = spare, numbers, 2 * half
    return numbers


def _hartley(numbers: Floats, size: int) -> Floats:
    """The Hartley transform of each `size` neighbours."""
    heads, dim, columns = numbers.shape
    before = numbers.reshape(heads * dim // size, size, 1, columns)
    after = np.zeros((heads * dim // size, size, columns), np.float32)
    for index, factors in enumerate(_hartley_columns(size)):
        after += factors[:, None] * before[:, index]
    return after.reshape(numbers.shape)


@cache
def _hartley_columns(size: int) -> Floats:
    angles = 2 * np.pi / size * np.outer(np.arange(size), np.arange(size))
    factors: Floats = (np.cos(angles) + np.sin(angles)).astype(np.float32)
    return factors
