"""Four bits a number: affine over groups of 64 in a rotated basis, 0.14 of the bytes of float32."""

import numpy as np
from numpy.typing import NDArray

from agentcache.adapters.codecs.floats import LARGEST, Floats, narrow, need_floats, widen
from agentcache.adapters.codecs.kept import Kept, Odd, pack_kept, pick
from agentcache.adapters.codecs.rotation import rotated
from agentcache.adapters.codecs.rowwise import RowwiseCodec
from agentcache.adapters.codecs.tensors import Role, pack, unpack
from agentcache.ports.payload import Payload, Tensor
from agentcache.ports.rows import RowArray

GROUP = 64
_HALF = GROUP // 2
_LEVELS = 15
_NAN, _SIGN = np.uint16(0x7FC0), np.uint16(0x8000)

Upper = NDArray[np.uint16]  # bfloat16, as its bits


class Q4Codec(RowwiseCodec):
    """Each head of a row is rotated, then c is stored as q = round((c - bias) / scale).

    A layer's rotated row is flattened over heads * dim and padded to whole groups with its last
    number. A role becomes, all with the row first:

    - `.q` U8 [rows, layers, groups * 32]: a group's first 32 numbers in the lower four bits;
    - `.s`, `.b` BF16 [rows, layers, groups]: the scale, rounded up, and the bias, rounded down, so
      that what bfloat16 loses makes steps wider (by 1 %) and cuts nothing off;
    - `.x` native dtype [n, heads * dim]: the layers' rows that are not finite, or too large to be
      rotated, and a sequence's very first row, as they are, in order. Their scales are NaN.

    Every later token attends to the first one, whatever it is (an attention sink; Xiao et al. 2023,
    "Efficient Streaming Language Models with Attention Sinks"): what is lost of it is lost to all.
    """

    name = "q4"

    def role_nbytes(self, role: Role, rows: int) -> int:
        """Bytes of `rows` finite rows of `role`, none of them a sequence's first."""
        return rows * role.layers * _groups(role) * (_HALF + 4)

    def tensor_names(self, role: Role) -> tuple[str, ...]:
        """The four tensors of a role."""
        return tuple(f"{role.name}.{part}" for part in "qsbx")

    def encode_role(self, role: Role, array: RowArray, start: int) -> dict[str, Tensor]:
        """Rotate and quantise `array`, [layers, heads, rows, dim]."""
        need_floats(self.name, role)
        rows = array.shape[2]
        lead = (rows, role.layers, _groups(role))
        packed, kept = np.empty((*lead, _HALF), np.uint8), []
        scale, bias = np.empty(lead, np.uint16), np.empty(lead, np.uint16)
        for tile in role.tiles(rows):
            numbers = _grouped(role, array[:, :, tile])
            steps, lows = _quantise(numbers, start + tile.start == 0)
            np.copyto(packed[tile], _packed(numbers).transpose(2, 3, 0, 1))
            np.copyto(scale[tile], steps.transpose(1, 2, 0))
            np.copyto(bias[tile], lows.transpose(1, 2, 0))
            kept.append(pick(array[:, :, tile], _odd(scale[tile])))
        return {
            f"{role.name}.q": pack(packed.reshape(*lead[:2], lead[2] * _HALF), "uint8"),
            f"{role.name}.s": pack(scale, "bfloat16"),
            f"{role.name}.b": pack(bias, "bfloat16"),
            f"{role.name}.x": pack_kept(role, kept),
        }

    def decode_role(
        self, role: Role, payload: Payload, stored: int, first: int, out: RowArray
    ) -> None:
        """Restore rows from `first` on into `out`, [layers, heads, rows, dim]."""
        need_floats(self.name, role)
        lead = (stored, role.layers, _groups(role))
        flat = unpack(payload, f"{role.name}.q", "uint8", (*lead[:2], lead[2] * _HALF))
        packed = flat.view(np.uint8).reshape(*lead, _HALF)
        scale = unpack(payload, f"{role.name}.s", "bfloat16", lead).view(np.uint16)
        bias = unpack(payload, f"{role.name}.b", "bfloat16", lead).view(np.uint16)
        kept = Kept.of(role, payload, _odd(scale))
        for tile in role.tiles(out.shape[2]):
            here = slice(first + tile.start, first + tile.stop)
            numbers = _restored(packed[here], scale[here], bias[here])
            heads = _heads(role, numbers)
            np.copyto(out[:, :, tile], narrow(heads, role.dtype).transpose(3, 0, 2, 1))
        kept.put(first, out)

    def odd(self, role: Role, payload: Payload, stored: int) -> Odd | None:
        """Those whose scales are NaN."""
        shape = (stored, role.layers, _groups(role))
        return _odd(unpack(payload, f"{role.name}.s", "bfloat16", shape).view(np.uint16))


def _groups(role: Role) -> int:
    return -(-role.width // GROUP)


def _odd(scale: Upper) -> Odd:
    """Which layers' rows, [rows, layers], have a scale that is NaN."""
    odd: Odd = np.any((scale & 0x7FFF) > 0x7F80, axis=-1)
    return odd


def _grouped(role: Role, array: RowArray) -> Floats:
    """Rows [layers, heads, rows, dim] rotated and padded, [groups, 64, rows, layers]."""
    layers, heads, rows, dim = array.shape
    numbers = np.empty((heads, dim, rows, layers), np.float32)
    widen(array.transpose(1, 3, 2, 0), role.dtype, numbers)
    flat = rotated(numbers.reshape(heads, dim, rows * layers)).reshape(role.width, rows * layers)
    if missing := -role.width % GROUP:
        flat = np.concatenate([flat, np.repeat(flat[-1:], missing, axis=0)])
    return flat.reshape(_groups(role), GROUP, rows, layers)


def _quantise(numbers: Floats, first: bool) -> tuple[Upper, Upper]:
    """Turn `numbers` into levels; return scale and bias, [groups, rows, layers].

    `first`: the first of the rows is a sequence's first.
    """
    low, high = numbers.min(axis=1), numbers.max(axis=1)
    low, high = low + 0, high + 0  # which of two zeros is smaller depends on the shape
    odd = np.any(~(np.maximum(high, -low) < LARGEST), axis=0)
    odd[:1] |= first
    numbers[:, :, odd], low[:, odd], high[:, odd] = 0, 0, 0
    bias = _rounded_up(-low) ^ _SIGN
    low = _float32(bias)
    scale = _rounded_up((high - low + 0) / _LEVELS)
    step = _float32(scale)
    numbers -= low[:, None]
    numbers /= np.where(step > 0, step, np.float32(np.inf))[:, None]
    np.rint(numbers, out=numbers)
    # The quotient of subnormal numbers may be far above 15.
    np.minimum(numbers, _LEVELS, out=numbers)
    scale[:, odd] = _NAN
    return scale, bias


def _packed(levels: Floats) -> RowArray:
    """Levels [groups, 64, ...] as four bits each, [groups, 32, ...]."""
    lower, upper = levels[:, :_HALF], levels[:, _HALF:]
    return (lower + 16 * upper).astype(np.uint8)


def _restored(packed: RowArray, scale: Upper, bias: Upper) -> Floats:
    """The numbers of [rows, layers, groups, 32], still rotated, [groups, 64, rows, layers]."""
    rows, layers, groups = scale.shape
    columns = np.ascontiguousarray(packed.transpose(2, 3, 0, 1)).view(np.uint8)
    numbers = np.empty((groups, GROUP, rows, layers), np.float32)
    np.copyto(numbers[:, :_HALF], columns & 15)
    np.copyto(numbers[:, _HALF:], columns >> 4)
    numbers *= _float32(scale).transpose(2, 0, 1)[:, None]
    numbers += _float32(bias).transpose(2, 0, 1)[:, None]
    return numbers


def _heads(role: Role, numbers: Floats) -> Floats:
    """Groups [groups, 64, rows, layers] rotated back, unpadded, [heads, dim, rows, layers]."""
    groups, _, rows, layers = numbers.shape
    flat = numbers.reshape(groups * GROUP, rows * layers)[: role.width]
    heads = rotated(flat.reshape(role.heads, role.dim, rows * layers))
    return heads.reshape(role.heads, role.dim, rows, layers)


def _rounded_up(numbers: Floats) -> Upper:
    """bfloat16 that is not below the finite float32."""
    bits = numbers.view(np.int32)
    # Away from zero where it is positive, towards zero where it is negative.
    up = np.where(bits < 0, bits, bits + 0xFFFF)
    return (up.view(np.uint32) >> 16).astype(np.uint16)


def _float32(upper: Upper) -> Floats:
    return (upper.astype(np.uint32) << 16).view(np.float32)
