"""The safetensors container: written tensor by tensor, and checked without reading the payload.

A file is the header's length (8 bytes, little endian), a JSON header that maps each tensor's name
to dtype, shape and byte range, and the payload, without gaps (huggingface.co/docs/safetensors).
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

FloatArray = NDArray[np.float32] | NDArray[np.float16]

_DTYPES = {"float32": "F32", "float16": "F16"}
_MAX_HEADER = 100_000_000


@frozen
class TensorPlan:
    """A tensor that will be written: its name and shape."""

    name: str
    shape: tuple[int, ...]


def write_safetensors(
    path: Path, dtype: str, plans: Iterable[TensorPlan], arrays: Iterable[FloatArray]
) -> None:
    """Write `arrays`, in the order of `plans`, as one file; holds one of them at a time.

    All are of `dtype` (float32 or float16). The file is left to the caller to sync.
    """
    header, sizes = _header(dtype, plans)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for size, array in zip(sizes, arrays, strict=True):
            assert (array.nbytes, array.dtype) == (size, np.dtype(dtype))
            np.ascontiguousarray(array).tofile(file)


def _header(dtype: str, plans: Iterable[TensorPlan]) -> tuple[bytes, list[int]]:
    entries: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    sizes: list[int] = []
    start = 0
    for plan in plans:
        size = int(np.prod(plan.shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        entries[plan.name] = {
            "dtype": _DTYPES[dtype],
            "shape": plan.shape,
            "data_offsets": (start, start + size),
        }
        sizes.append(size)
        start += size
    header = json.dumps(entries, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % 8), sizes


def tensor_names(path: Path) -> frozenset[str]:
    """The names of the tensors in `path`, whose size is checked against its header.

    Raises ValueError, with what is wrong, for a file that is cut off or no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise ValueError("is cut off or no safetensors file")
        entries = _parse(file.read(length))
    _check_size(entries, size - 8 - length)
    return frozenset(entries)


def _parse(header: bytes) -> Mapping[str, Mapping[str, object]]:
    try:
        entries = json.loads(header)
    except ValueError:
        raise ValueError("has a header that is not JSON") from None
    if not isinstance(entries, dict) or not all(isinstance(one, dict) for one in entries.values()):
        raise ValueError("has a header that is no table of tensors")
    entries.pop("__metadata__", None)
    return cast(Mapping[str, Mapping[str, object]], entries)


def _check_size(entries: Mapping[str, Mapping[str, object]], payload: int) -> None:
    end = 0
    for name, entry in entries.items():
        match entry.get("data_offsets"):
            case [int() as start, int() as stop] if 0 <= start <= stop:
                end = max(end, stop)
            case _:
                raise ValueError(f"states no byte range for tensor {name}")
    if end != payload:
        raise ValueError(f"holds {payload} bytes of tensors where its header states {end}")
