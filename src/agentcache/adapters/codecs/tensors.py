"""Between numpy arrays and the named byte tensors of a payload, every shape and length checked."""

from collections.abc import Iterator, Mapping

import numpy as np
from attrs import frozen

from agentcache.domain.spec import CacheSpec, LayerKind
from agentcache.ports.payload import Payload, Tensor
from agentcache.ports.rows import NUMPY_DTYPE, RowArray

TAGS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int32": "I32", "uint8": "U8"}
_TILE_BYTES = 512 << 10


@frozen
class Role:
    """The keys or the values of one group of layers. `width` numbers make a layer's row."""

    name: str
    keys: bool
    layers: int
    heads: int
    dim: int
    window: int | None
    dtype: str

    @property
    def width(self) -> int:
        """Numbers in one layer's row."""
        return self.heads * self.dim

    def rows(self, count: int) -> int:
        """How many rows a segment of `count` tokens holds."""
        return count if self.window is None else min(self.window, count)

    def headed(self, flat: RowArray) -> RowArray:
        """A view of [rows, layers, heads * dim] as [layers, heads, rows, dim]."""
        shape = (len(flat), self.layers, self.heads, self.dim)
        return flat.reshape(shape).transpose(1, 2, 0, 3)

    def tiles(self, count: int) -> Iterator[slice]:
        """`count` rows in pieces that stay in a core's cache between two passes over them."""
        size = max(1, _TILE_BYTES // max(1, 4 * self.layers * self.width))
        return (slice(start, min(start + size, count)) for start in range(0, count, size))


def roles(spec: CacheSpec, kind: LayerKind) -> tuple[Role, ...]:
    """The roles of all groups of `kind`."""
    return tuple(
        Role(name, keys, len(group.layers), group.heads, dim, group.window, spec.dtype)
        for group in spec.groups
        if group.kind is kind
        for keys, (name, dim) in zip((True, False), group.roles(), strict=True)
    )


def checked(array: RowArray, name: str, dtype: str, shape: tuple[int, ...]) -> RowArray:
    """`array`, which must be of this dtype and shape. Raises ValueError."""
    if array.dtype != NUMPY_DTYPE[dtype] or array.shape != shape:
        raise ValueError(f"{name} is {array.dtype}{array.shape}, not {dtype}{shape}")
    return array


def pack(array: RowArray, dtype: str) -> Tensor:
    """A tensor over the memory of `array`, which must be contiguous."""
    data = array.reshape(-1).view(np.uint8).data.toreadonly()
    return Tensor(TAGS[dtype], array.shape, data)


def unpack(payload: Payload, name: str, dtype: str, shape: tuple[int, ...]) -> RowArray:
    """The tensor called `name` as an array of this dtype and shape. Raises ValueError."""
    tensor = payload.tensors.get(name)
    if tensor is None:
        raise ValueError(f"the payload has no tensor {name}")
    if (tensor.dtype, tensor.shape) != (TAGS[dtype], shape):
        raise ValueError(f"{name} is {tensor.dtype}{tensor.shape}, not {TAGS[dtype]}{shape}")
    items = np.prod(shape, dtype=np.int64) * NUMPY_DTYPE[dtype].itemsize
    if tensor.data.nbytes != items:
        raise ValueError(f"{name} has {tensor.data.nbytes} bytes, not {items}")
    return np.frombuffer(tensor.data, NUMPY_DTYPE[dtype]).reshape(shape)


def pack_state(spec: CacheSpec, state: Mapping[str, RowArray]) -> dict[str, Tensor]:
    """Copies of the state arrays, bytes as they are."""
    tensors = {}
    for name, dtype, shape in state_arrays(spec):
        array = checked(state[name], name, dtype, shape)
        tensors[name] = pack(np.array(array, order="C"), dtype)
    return tensors


def unpack_state(spec: CacheSpec, payload: Payload, out: Mapping[str, RowArray]) -> None:
    """Fill the state arrays of `out`."""
    for name, dtype, shape in state_arrays(spec):
        np.copyto(checked(out[name], name, dtype, shape), unpack(payload, name, dtype, shape))


def pack_bytes(array: RowArray, name: str) -> Tensor:
    """A copy of bytes whose number no spec tells."""
    return pack(np.array(checked(array, name, "uint8", (array.size,)), order="C"), "uint8")


def unpack_bytes(payload: Payload, name: str) -> RowArray:
    """What `pack_bytes` packed. Raises ValueError."""
    count = payload.tensors[name].data.nbytes if name in payload.tensors else 0
    return unpack(payload, name, "uint8", (count,))


def state_arrays(spec: CacheSpec) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of every state array."""
    for index, layer in enumerate(spec.layers):
        for n, array in enumerate(layer.state):
            yield f"s{index}.{n}", array.dtype, array.shape
