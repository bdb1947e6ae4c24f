"""Affine q4 without q4's two additions, in the same bytes a token: what it is compared with."""

import numpy as np

from agentcache.adapters.codecs import Q4Codec
from agentcache.adapters.codecs.rotation import rotated
from agentcache.domain.spec import CacheSpec
from agentcache.ports.payload import Payload
from agentcache.ports.rows import RowArray, Rows


class PlainQ4(Q4Codec):
    """No rotation, and no first row that is kept as it is.

    Gives q4 float32 rows that are rotated already, since rotating them again undoes it, and that
    are not said to be a sequence's first.
    """

    def encode(self, spec: CacheSpec, rows: Rows) -> Payload:
        """See `Codec`; full layers alone."""
        full = {role: _turned(array) for role, array in rows.full.items()}
        return super().encode(spec, Rows(rows.start + 1, rows.stop + 1, full))

    def decode(self, spec: CacheSpec, payload: Payload, out: Rows, first: int = 0) -> None:
        """See `Codec`."""
        super().decode(spec, payload, out, first)
        for array in out.full.values():
            np.copyto(array, _turned(array))


def _turned(array: RowArray) -> RowArray:
    """[layers, heads, rows, dim], each head of each row rotated."""
    layers, heads, rows, dim = array.shape
    columns = np.array(array.transpose(0, 1, 3, 2), np.float32, order="C")
    turned = rotated(columns.reshape(layers * heads, dim, rows))
    return turned.reshape(layers, heads, dim, rows).transpose(0, 1, 3, 2)
