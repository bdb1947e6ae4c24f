"""The GGUF container: metadata and tensors, read with every count checked against the file.

Layout: github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package's own reader is not
used, because it trusts counts: an array that claims 2^60 items keeps it busy for good.
"""

import mmap
import struct
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
from attrs import frozen
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from numpy.typing import NDArray

Scalar = bool | int | float | str
Value = Scalar | list[bool] | list[int] | list[float] | list[str]
T = TypeVar("T")

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_MAX_DIMS = 4


class BadGguf(ValueError):
    """The file is no GGUF that can be used; the text says why."""


@frozen
class GgufTensor:
    """A tensor: its shape (rows first, as numpy has it), encoding, and where its bytes are."""

    name: str
    shape: tuple[int, ...]
    encoding: GGMLQuantizationType
    offset: int
    nbytes: int


@frozen
class GgufFile:
    """A parsed GGUF: `metadata` by key, `tensors` by name."""

    path: Path
    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Parse and check everything but the tensors' content. Raises BadGguf or OSError."""
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise BadGguf("it is no GGUF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                metadata, tensors = _parse(_Cursor(data))
        return cls(path, metadata, tensors)

    def load(self, tensor: GgufTensor) -> NDArray[np.float32]:
        """The values of `tensor`, dequantised. Raises BadGguf for an unsupported encoding."""
        raw = np.fromfile(self.path, np.uint8, tensor.nbytes, offset=tensor.offset)
        try:
            values = dequantize(raw.reshape(*tensor.shape[:-1], -1), tensor.encoding)
        except NotImplementedError:
            raise BadGguf(f"its encoding {tensor.encoding.name} is not supported") from None
        return np.asarray(values, np.float32).reshape(tensor.shape)


def is_gguf(path: Path) -> bool:
    """Whether `path` begins as a GGUF does. Raises OSError."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


class _Cursor:
    """Reads little-endian values from the front; past the end is BadGguf."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = len(_MAGIC)

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise BadGguf(f"it is cut off or damaged: byte {self.at} promises {size} more bytes")
        self.at += size
        return self.data[self.at - size : self.at]

    def u32(self) -> int:
        return int(struct.unpack("<I", self.take(4))[0])

    def u64(self) -> int:
        return int(struct.unpack("<Q", self.take(8))[0])

    def string(self) -> str:
        try:
            return self.take(self.u64()).decode()
        except UnicodeDecodeError:
            raise BadGguf(f"the string before byte {self.at} is not UTF-8") from None

    def value(self) -> Value:
        kind = self.u32()
        if kind == _ARRAY:
            return self._array(self.u32(), self.u64())
        if kind == _STRING:
            return self.string()
        scalar: Scalar = self._numbers(kind, 1)[0]
        return scalar

    def _array(self, kind: int, count: int) -> Value:
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        return self._numbers(kind, count)

    def _numbers(self, kind: int, count: int) -> list[int]:
        if kind not in _NUMBERS:
            raise BadGguf(f"byte {self.at} has a value of unknown type {kind}")
        dtype = np.dtype(_NUMBERS[kind])
        numbers: list[int] = np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
        return numbers


def _parse(cursor: _Cursor) -> tuple[Mapping[str, Value], Mapping[str, GgufTensor]]:
    version = cursor.u32()
    if version not in _VERSIONS:
        raise BadGguf(f"it has format version {version}; only little-endian 2 and 3 are supported")
    tensor_count, value_count = cursor.u64(), cursor.u64()
    metadata = _table(value_count, lambda: (cursor.string(), cursor.value()))
    infos = _table(tensor_count, lambda: (cursor.string(), _read_info(cursor)))
    return metadata, _place(cursor, infos, _alignment(metadata))


def _table(count: int, read: Callable[[], tuple[str, T]]) -> dict[str, T]:
    table: dict[str, T] = {}
    for _ in range(count):
        name, item = read()
        if name in table:
            raise BadGguf(f"it has {name!r} twice")
        table[name] = item
    return table


@frozen
class _Info:
    shape: tuple[int, ...]
    encoding: GGMLQuantizationType
    offset: int

    @property
    def nbytes(self) -> int:
        block, size = GGML_QUANT_SIZES[self.encoding]
        return prod(self.shape) // block * size


def _read_info(cursor: _Cursor) -> _Info:
    dims = cursor.u32()
    if not 1 <= dims <= _MAX_DIMS:
        raise BadGguf(f"it has a tensor of {dims} dimensions before byte {cursor.at}")
    shape = tuple(reversed([cursor.u64() for _ in range(dims)]))
    kind = cursor.u32()
    try:
        encoding = GGMLQuantizationType(kind)
    except ValueError:
        raise BadGguf(f"it has a tensor of unknown encoding {kind}") from None
    if 0 in shape or shape[-1] % GGML_QUANT_SIZES[encoding][0]:
        raise BadGguf(f"it has a tensor of shape {shape}, which {encoding.name} cannot encode")
    return _Info(shape, encoding, cursor.u64())


def _alignment(metadata: Mapping[str, Value]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise BadGguf(f"its alignment {alignment!r} is not a power of two")
    return alignment


def _place(cursor: _Cursor, infos: Mapping[str, _Info], alignment: int) -> Mapping[str, GgufTensor]:
    """Turn offsets into places in the file, all of them inside it and none used twice."""
    start = cursor.at + -cursor.at % alignment
    end = start
    for name, info in sorted(infos.items(), key=lambda item: item[1].offset):
        if start + info.offset < end or info.offset % alignment:
            raise BadGguf(f"tensor {name!r} lies where another one does, or is not aligned")
        end = start + info.offset + info.nbytes
    if end > len(cursor.data):
        raise BadGguf(f"it is cut off: {len(cursor.data)} bytes of at least {end}")
    return {
        name: GgufTensor(name, info.shape, info.encoding, start + info.offset, info.nbytes)
        for name, info in infos.items()
    }
