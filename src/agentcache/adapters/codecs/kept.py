"""Layers' rows that an encoding cannot hold: kept as they are, in a tensor of their own."""

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from agentcache.adapters.codecs.tensors import Role, pack, unpack
from agentcache.ports.payload import Payload, Tensor
from agentcache.ports.rows import NUMPY_DTYPE, RowArray

Odd = NDArray[np.bool_]


def pick(array: RowArray, odd: Odd) -> RowArray:
    """The rows of `array`, [layers, heads, rows, dim], that are `odd`, [rows, layers], in order."""
    return array.transpose(2, 0, 1, 3)[odd]


def pack_kept(role: Role, picked: list[RowArray]) -> Tensor:
    """What was picked, tile after tile, as a tensor [n, heads * dim] in the native dtype."""
    none = np.empty((0, role.heads, role.dim), NUMPY_DTYPE[role.dtype])
    rows = np.concatenate([none, *picked])
    return pack(rows.reshape(len(rows), role.width), role.dtype)


@frozen(eq=False)
class Kept:
    """The kept rows of a payload: `odd`, [rows, layers], says whose they are, in order."""

    role: Role
    odd: Odd
    rows: RowArray

    @classmethod
    def of(cls, role: Role, payload: Payload, odd: Odd) -> "Kept":
        """Those of `role`. Raises ValueError when there are more or fewer than `odd` says."""
        count = int(np.count_nonzero(odd))
        rows = unpack(payload, f"{role.name}.x", role.dtype, (count, role.width))
        return cls(role, odd, rows.reshape(count, role.heads, role.dim))

    def put(self, first: int, out: RowArray) -> None:
        """Write those of the rows from `first` on into `out`, [layers, heads, rows, dim]."""
        here = self.odd[first : first + out.shape[2]]
        start = int(np.count_nonzero(self.odd[:first]))
        if count := int(np.count_nonzero(here)):
            out.transpose(2, 0, 1, 3)[here] = self.rows[start : start + count]
