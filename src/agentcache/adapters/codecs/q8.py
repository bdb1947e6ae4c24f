"""Eight bits a number: affine over groups of 64, about 0.28 of the bytes of float32."""

import numpy as np

from agentcache.adapters.codecs.floats import LARGEST, Floats, narrow, need_floats, widen
from agentcache.adapters.codecs.kept import Kept, Odd, pack_kept, pick
from agentcache.adapters.codecs.rowwise import RowwiseCodec
from agentcache.adapters.codecs.tensors import Role, pack, unpack
from agentcache.ports.payload import Payload, Tensor
from agentcache.ports.rows import RowArray

GROUP = 64
_LEVELS = 255


class Q8Codec(RowwiseCodec):
    """x is stored as q = round((x - bias) / scale), one scale and one bias for 64 numbers.

    A layer's row is flattened over heads * dim and padded to whole groups with its last number, so
    that the padding widens no group's range. A role becomes, all with the row first:

    - `.q` U8 [rows, layers, groups * 64], with bias the group's minimum and scale its range / 255;
    - `.s`, `.b` F32 [rows, layers, groups], the scale and the bias. float16 would save 5 % of the
      bytes, and lose what rows with an offset, or beyond 65,504, are made of;
    - `.x` native dtype [n, heads * dim]: the layers' rows that are not finite, or of a range of
      2^100 and more, as they are, in order. Their scales are NaN.
    """

    name = "q8"

    def role_nbytes(self, role: Role, rows: int) -> int:
        """Bytes of `rows` finite rows of `role`."""
        return rows * role.layers * _groups(role) * (GROUP + 8)

    def tensor_names(self, role: Role) -> tuple[str, ...]:
        """The four tensors of a role."""
        return tuple(f"{role.name}.{part}" for part in "qsbx")

    def encode_role(self, role: Role, array: RowArray, start: int) -> dict[str, Tensor]:
        """Quantise `array`, [layers, heads, rows, dim]."""
        need_floats(self.name, role)
        rows, groups = array.shape[2], _groups(role)
        levels = np.empty((rows, role.layers, groups, GROUP), np.uint8)
        scale = np.empty((rows, role.layers, groups), np.float32)
        bias = np.empty_like(scale)
        kept = []
        for tile in role.tiles(rows):
            numbers = _grouped(role, array[:, :, tile])
            odd = _quantise(numbers, levels[tile], scale[tile], bias[tile])
            kept.append(pick(array[:, :, tile], odd))
        return {
            f"{role.name}.q": pack(levels.reshape(rows, role.layers, groups * GROUP), "uint8"),
            f"{role.name}.s": pack(scale, "float32"),
            f"{role.name}.b": pack(bias, "float32"),
            f"{role.name}.x": pack_kept(role, kept),
        }

    def decode_role(
        self, role: Role, payload: Payload, stored: int, first: int, out: RowArray
    ) -> None:
        """Restore rows from `first` on into `out`, [layers, heads, rows, dim]."""
        need_floats(self.name, role)
        lead, groups = (stored, role.layers), _groups(role)
        padded = groups * GROUP
        flat = unpack(payload, f"{role.name}.q", "uint8", (*lead, padded))
        levels = flat.reshape(*lead, groups, GROUP)
        scale = unpack(payload, f"{role.name}.s", "float32", (*lead, groups)).view(np.float32)
        bias = unpack(payload, f"{role.name}.b", "float32", (*lead, groups)).view(np.float32)
        kept = Kept.of(role, payload, _odd(scale))
        for tile in role.tiles(out.shape[2]):
            here = slice(first + tile.start, first + tile.stop)
            numbers = _restored(levels[here], scale[here], bias[here])
            flat = numbers.reshape(*numbers.shape[:2], padded)[..., : role.width]
            np.copyto(out[:, :, tile], role.headed(narrow(flat, role.dtype)))
        kept.put(first, out)

    def odd(self, role: Role, payload: Payload, stored: int) -> Odd | None:
        """Those whose scales are NaN."""
        shape = (stored, role.layers, _groups(role))
        scale = unpack(payload, f"{role.name}.s", "float32", shape).view(np.float32)
        return _odd(scale)


def _odd(scale: Floats) -> Odd:
    """The layers' rows with a NaN among their scales [rows, layers, groups]; mostly there are none.

    Every part of a payload asks, and to look at each row by itself takes as long as to decode it.
    """
    found = np.isnan(scale)
    odd: Odd = np.any(found, axis=-1) if found.any() else np.zeros(scale.shape[:-1], np.bool_)
    return odd


def _groups(role: Role) -> int:
    return -(-role.width // GROUP)


def _grouped(role: Role, array: RowArray) -> Floats:
    """Rows [layers, heads, rows, dim] as float32 [rows, layers, groups, 64], padded."""
    rows, groups = array.shape[2], _groups(role)
    padded = np.empty((rows, role.layers, groups * GROUP), np.float32)
    widen(array, role.dtype, role.headed(padded[..., : role.width]))
    if role.width % GROUP:
        padded[..., role.width :] = padded[..., role.width - 1, None]
    return padded.reshape(rows, role.layers, groups, GROUP)


def _quantise(numbers: Floats, levels: RowArray, scale: Floats, bias: Floats) -> Odd:
    """Fill `levels`, `scale` and `bias`; return which layers' rows must be kept as they are."""
    np.min(numbers, axis=-1, out=bias)
    np.max(numbers, axis=-1, out=scale)
    with np.errstate(invalid="ignore", over="ignore"):
        np.subtract(scale, bias, out=scale)
    odd: Odd = np.any(~(scale < LARGEST), axis=-1)
    numbers[odd], scale[odd], bias[odd] = 0, 0, 0
    scale /= _LEVELS
    numbers -= bias[..., None]
    numbers /= np.where(scale > 0, scale, np.float32(np.inf))[..., None]
    np.rint(numbers, out=numbers)
    # The quotient of subnormal numbers may be far above 255.
    np.minimum(numbers, _LEVELS, out=numbers)
    np.copyto(levels, numbers, casting="unsafe")
    scale[odd] = np.nan
    return odd


def _restored(levels: RowArray, scale: Floats, bias: Floats) -> Floats:
    numbers = levels.astype(np.float32)
    numbers *= scale[..., None]
    numbers += bias[..., None]
    return numbers
