"""Sixteen bits a number: half the bytes of float32, 11 bits of precision."""

import numpy as np
from numpy.typing import NDArray

from agentcache.adapters.codecs.floats import need_floats
from agentcache.adapters.codecs.kept import Kept, Odd, pack_kept, pick
from agentcache.adapters.codecs.native import NativeCodec
from agentcache.adapters.codecs.rowwise import RowwiseCodec
from agentcache.adapters.codecs.tensors import Role, pack, unpack
from agentcache.ports.payload import Payload, Tensor
from agentcache.ports.rows import RowArray


class F16Codec(RowwiseCodec):
    """float32 is rounded to float16: off by 2^-11 of a number at most, below 2^-14 by 2^-25.

    A role becomes, with the row first:

    - `.h` F16 [rows, layers, heads * dim];
    - `.x` F32 [n, heads * dim]: the layers' rows with a number that is not finite or beyond 65,504,
      as they are, in order. In `.h` they begin with NaN.

    float16 and bfloat16 rows are stored as `native` stores them: rounding bfloat16 to float16 would
    lose range and save nothing.
    """

    name = "f16"
    _native = NativeCodec()

    def role_nbytes(self, role: Role, rows: int) -> int:
        """Bytes of `rows` rows of `role` without numbers beyond 65,504."""
        return rows * role.layers * role.width * 2

    def tensor_names(self, role: Role) -> tuple[str, ...]:
        """The two tensors of a float32 role, or the one of another."""
        if role.dtype != "float32":
            return self._native.tensor_names(role)
        return (f"{role.name}.h", f"{role.name}.x")

    def encode_role(self, role: Role, array: RowArray, start: int) -> dict[str, Tensor]:
        """Round `array`, [layers, heads, rows, dim]."""
        need_floats(self.name, role)
        if role.dtype != "float32":
            return self._native.encode_role(role, array, start)
        rows = array.shape[2]
        halves, kept = np.empty((rows, role.layers, role.width), np.float16), []
        for tile in role.tiles(rows):
            # In two passes, since converting between two layouts at once is several times slower.
            flat = np.empty(halves[tile].shape, np.float32)
            np.copyto(role.headed(flat), array[:, :, tile])
            with np.errstate(over="ignore", under="ignore"):
                np.copyto(halves[tile], flat, casting="same_kind")
            odd = _not_finite(halves[tile])
            kept.append(pick(array[:, :, tile], odd))
            halves[tile][odd] = np.nan
        return {
            f"{role.name}.h": pack(halves, "float16"),
            f"{role.name}.x": pack_kept(role, kept),
        }

    def decode_role(
        self, role: Role, payload: Payload, stored: int, first: int, out: RowArray
    ) -> None:
        """Widen rows from `first` on into `out`, [layers, heads, rows, dim]."""
        need_floats(self.name, role)
        if role.dtype != "float32":
            self._native.decode_role(role, payload, stored, first, out)
            return
        shape = (stored, role.layers, role.width)
        halves = unpack(payload, f"{role.name}.h", "float16", shape)
        kept = Kept.of(role, payload, _marked(halves))
        for tile in role.tiles(out.shape[2]):
            np.copyto(out[:, :, tile], role.headed(halves[first:][tile].astype(np.float32)))
        kept.put(first, out)

    def odd(self, role: Role, payload: Payload, stored: int) -> Odd | None:
        """Those whose halves begin with NaN."""
        if role.dtype != "float32":
            return None
        shape = (stored, role.layers, role.width)
        return _marked(unpack(payload, f"{role.name}.h", "float16", shape))


def _marked(halves: RowArray) -> Odd:
    """Which of [rows, layers, width] begin with NaN."""
    odd: Odd = np.any(np.isnan(halves[..., :1]), axis=-1)
    return odd


def _not_finite(halves: NDArray[np.float16]) -> Odd:
    """Which of [rows, layers, width] hold infinity or NaN; by their bits, which is faster."""
    largest = np.max(halves.view(np.uint16) & 0x7FFF, axis=-1, initial=0)
    odd: Odd = largest >= 0x7C00
    return odd
