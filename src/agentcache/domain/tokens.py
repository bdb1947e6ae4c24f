"""Token ids as compact arrays of unsigned 32-bit integers."""

import sys
from array import array
from collections.abc import Iterable

type_code = "I"
_CHUNK = 512

Tokens = array  # `Tokens[int]`; never mutated once it is shared


def tokens(ids: Iterable[int] = ()) -> "Tokens[int]":
    """Make a token array. Raises OverflowError for ids outside 0..2**32-1."""
    return array(type_code, ids)


def to_bytes(ids: "Tokens[int]") -> bytes:
    """The ids as little-endian uint32, whatever the machine."""
    return ids.tobytes() if sys.byteorder == "little" else _swapped(ids).tobytes()


def from_bytes(data: bytes) -> "Tokens[int]":
    """The inverse of `to_bytes`. Raises ValueError when `data` is not whole uint32s."""
    ids = array(type_code)
    ids.frombytes(data)
    return ids if sys.byteorder == "little" else _swapped(ids)


def common_prefix(a: "Tokens[int]", a_start: int, b: "Tokens[int]", b_start: int) -> int:
    """How many ids of `a[a_start:]` and `b[b_start:]` agree from their beginnings."""
    limit = max(0, min(len(a) - a_start, len(b) - b_start))
    done = 0
    while done < limit:
        size = min(_CHUNK, limit - done)
        left = a[a_start + done : a_start + done + size]
        right = b[b_start + done : b_start + done + size]
        if left != right:
            return done + _first_difference(left, right)
        done += size
    return limit


def _first_difference(left: "Tokens[int]", right: "Tokens[int]") -> int:
    return next(i for i, (x, y) in enumerate(zip(left, right, strict=True)) if x != y)


def _swapped(ids: "Tokens[int]") -> "Tokens[int]":
    other = array(type_code, ids)
    other.byteswap()
    return other
