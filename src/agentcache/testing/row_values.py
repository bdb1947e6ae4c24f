"""Rows that the contract of codecs is told with."""

from math import prod

import numpy as np
from attrs import evolve
from numpy.typing import NDArray

from agentcache.domain.spec import CacheSpec, LayerKind, LayerSpec, StateArray
from agentcache.ports.codec import Codec
from agentcache.ports.payload import Payload, Tensor
from agentcache.ports.rows import RowArray, Rows, empty_rows

FloatArray = NDArray[np.floating]
SMOLLM = CacheSpec((LayerSpec.full(3, 64),) * 30)
MIXED = CacheSpec(
    (
        LayerSpec.full(2, 40, 24),
        LayerSpec(LayerKind.WINDOW, 2, 40, 24, window=4),
        LayerSpec(LayerKind.STATE, state=(StateArray((2, 3), "float32"),)),
    )
)


def filled(spec: CacheSpec, count: int, seed: int = 0, slack: int = 0) -> Rows:
    """Rows [0, count) of noise, in buffers with `slack` rows more."""
    noise = np.random.default_rng(seed)
    rows = empty_rows(spec, 0, count, count + slack)
    for array in arrays(rows).values():
        array[...] = noise.normal(0, 3, array.shape).astype(array.dtype)
    return rows


def run(spec: CacheSpec, rows: Rows, start: int, stop: int) -> Rows:
    """Rows [start, stop) as a segment holds them; `rows` has those of windows from 0 on."""
    sizes = {role: one.window or 0 for one in spec.groups for role, _ in one.roles()}
    window = {
        role: array[:, :, max(start, stop - sizes[role]) : stop]
        for role, array in rows.window.items()
    }
    return evolve(rows.part(start, stop), window=window, state=rows.state)


def unwindowed(rows: Rows) -> Rows:
    """`rows` with windows that never lost a row; what they had lost is of any bits."""
    noise = np.random.default_rng(0)
    window = {}
    for role, array in rows.window.items():
        lost = (*array.shape[:2], rows.stop - array.shape[2], array.shape[3])
        more = np.frombuffer(noise.bytes(prod(lost) * array.itemsize), array.dtype).reshape(lost)
        window[role] = np.concatenate([more, array], axis=2)
    return evolve(rows, window=window)


def arrays(rows: Rows) -> dict[str, RowArray]:
    """All arrays of `rows` by name."""
    return {**rows.full, **rows.window, **rows.state}


def as_bytes(rows: Rows) -> dict[str, bytes]:
    """All arrays of `rows`, to be compared."""
    return {name: array.tobytes() for name, array in arrays(rows).items()}


def decoded(codec: Codec, spec: CacheSpec, payload: Payload, start: int, stop: int) -> Rows:
    """Rows [start, stop) of `payload`, decoded into views of larger buffers."""
    out = empty_rows(spec, 0, payload.rows, payload.rows + 3).part(start, stop)
    codec.decode(spec, payload, out, first=start)
    return out


def as_float(array: RowArray, dtype: str) -> FloatArray:
    """The numbers of `array`, those of bfloat16 being its bits."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def without(payload: Payload, name: str) -> Payload:
    """`payload` without one of its tensors."""
    return evolve(payload, tensors={k: v for k, v in payload.tensors.items() if k != name})


def replaced(payload: Payload, name: str, tensor: Tensor) -> Payload:
    """`payload` with `tensor` as `name`."""
    return evolve(payload, tensors={**payload.tensors, name: tensor})
