"""Eight bits a number: affine over groups of 64, about 0.28 of the bytes of float32."""

import numpy as np
from numpy.typing import NDArray

from agentcache.adapters.codecs.rowwise import RowwiseCodec
from agentcache.adapters.codecs.tensors import Role, pack, unpack
from agentcache.ports.payload import Payload, Tensor
from agentcache.ports.rows import NUMPY_DTYPE, RowArray

GROUP = 64
_LEVELS = 255
_FLOATS = ("float32", "float16", "bfloat16")
_Floats = NDArray[np.float32]


class Q8Codec(RowwiseCodec):
    """x is stored as q = round((x - bias) / scale), one scale and one bias for 64 numbers.

    A layer's row is flattened over heads * dim and padded to whole groups with its last number, so
    that the padding widens no group's range. A role becomes, all with the row first:

    - `.q` U8 [rows, layers, groups * 64], with bias the group's minimum and scale its range / 255;
    - `.s`, `.b` F32 [rows, layers, groups], the scale and the bias. float16 would save 5 % of the
      bytes, and lose what rows with an offset, or beyond 65,504, are made of;
    - `.x` native dtype [n, heads * dim]: the layers' rows that are not finite, or whose range is
      not, as they are, in order. Their scales are NaN.
    """

    name = "q8"

    def role_nbytes(self, role: Role, rows: int) -> int:
        """Bytes of `rows` finite rows of `role`."""
        return rows * role.layers * _groups(role) * (GROUP + 8)

    def tensor_names(self, role: Role) -> tuple[str, ...]:
        """The four tensors of a role."""
        return tuple(f"{role.name}.{part}" for part in "qsbx")

    def encode_role(self, role: Role, array: RowArray) -> dict[str, Tensor]:
        """Quantise `array`, [layers, heads, rows, dim]."""
        _need_floats(role)
        rows, groups = array.shape[2], _groups(role)
        levels = np.empty((rows, role.layers, groups, GROUP), np.uint8)
        scale = np.empty((rows, role.layers, groups), np.float32)
        bias = np.empty_like(scale)
        exact = [np.empty((0, role.width), NUMPY_DTYPE[role.dtype])]
        for tile in role.tiles(rows):
            shape = (tile.stop - tile.start, role.layers, role.width)
            native = array[:, :, tile].transpose(2, 0, 1, 3).reshape(shape)
            numbers = _grouped(role, native)
            odd = _quantise(numbers, levels[tile], scale[tile], bias[tile])
            exact.append(native[odd])
        return {
            f"{role.name}.q": pack(levels.reshape(rows, role.layers, groups * GROUP), "uint8"),
            f"{role.name}.s": pack(scale, "float32"),
            f"{role.name}.b": pack(bias, "float32"),
            f"{role.name}.x": pack(np.concatenate(exact), role.dtype),
        }

    def decode_role(
        self, role: Role, payload: Payload, stored: int, first: int, out: RowArray
    ) -> None:
        """Restore rows from `first` on into `out`, [layers, heads, rows, dim]."""
        _need_floats(role)
        lead, groups = (stored, role.layers), _groups(role)
        flat = unpack(payload, f"{role.name}.q", "uint8", (*lead, groups * GROUP))
        levels = flat.reshape(*lead, groups, GROUP)
        scale = unpack(payload, f"{role.name}.s", "float32", (*lead, groups)).view(np.float32)
        bias = unpack(payload, f"{role.name}.b", "float32", (*lead, groups)).view(np.float32)
        odd = np.any(np.isnan(scale), axis=-1)
        exact = _exact_rows(role, payload, int(np.count_nonzero(odd)))
        used = int(np.count_nonzero(odd[:first]))
        for tile in role.tiles(out.shape[2]):
            here = slice(first + tile.start, first + tile.stop)
            native = _native(role, _restored(levels[here], scale[here], bias[here]))
            count = int(np.count_nonzero(odd[here]))
            if count:
                native[odd[here]] = exact[used : used + count]
                used += count
            np.copyto(out[:, :, tile], role.headed(native))


def _groups(role: Role) -> int:
    return -(-role.width // GROUP)


def _need_floats(role: Role) -> None:
    if role.dtype not in _FLOATS:
        raise ValueError(f"q8 encodes {', '.join(_FLOATS)}, not {role.dtype}")


def _grouped(role: Role, native: RowArray) -> _Floats:
    """Rows [rows, layers, width] as float32 [rows, layers, groups, 64], padded."""
    groups = _groups(role)
    padded = np.empty((*native.shape[:2], groups * GROUP), np.float32)
    padded[..., : role.width] = _widened(role, native)
    if role.width % GROUP:
        padded[..., role.width :] = padded[..., role.width - 1, None]
    return padded.reshape(*native.shape[:2], groups, GROUP)


def _quantise(
    numbers: _Floats, levels: RowArray, scale: _Floats, bias: _Floats
) -> NDArray[np.bool_]:
    """Fill `levels`, `scale` and `bias`; return which layers' rows must be kept as they are."""
    np.min(numbers, axis=-1, out=bias)
    np.max(numbers, axis=-1, out=scale)
    with np.errstate(invalid="ignore", over="ignore"):
        np.subtract(scale, bias, out=scale)
    odd: NDArray[np.bool_] = np.any(~np.isfinite(scale), axis=-1)
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


def _restored(levels: RowArray, scale: _Floats, bias: _Floats) -> _Floats:
    numbers = levels.astype(np.float32)
    numbers *= scale[..., None]
    numbers += bias[..., None]
    return numbers


def _exact_rows(role: Role, payload: Payload, count: int) -> RowArray:
    return unpack(payload, f"{role.name}.x", role.dtype, (count, role.width))


def _native(role: Role, numbers: _Floats) -> RowArray:
    """Groups [rows, layers, groups, 64] in the native dtype, [rows, layers, width], unpadded."""
    flat = numbers.reshape(*numbers.shape[:2], _groups(role) * GROUP)[..., : role.width]
    if role.dtype == "bfloat16":
        return _bfloat16(flat)
    return flat.astype(NUMPY_DTYPE[role.dtype], copy=False)


def _widened(role: Role, native: RowArray) -> RowArray:
    if role.dtype == "bfloat16":
        return (native.astype(np.uint32) << 16).view(np.float32)
    return native


def _bfloat16(numbers: _Floats) -> NDArray[np.uint16]:
    """The upper halves of the float32 bits, rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(numbers).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
