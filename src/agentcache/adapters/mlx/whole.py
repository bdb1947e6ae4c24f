"""Caches that nobody taught us: all that such an object holds, as bytes and back.

They are kept at the ends of segments only, each time all of it, and their sequences decode one by
one. This is what stands between a new architecture and no memory at all.
"""

import copy
import json
from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from attrs import define, field

from agentcache.adapters.mlx.live import Undo
from agentcache.domain.errors import IntegrityError
from agentcache.domain.spec import CacheSpec, LayerKind
from agentcache.ports.rows import RowArray, Rows

_Node = dict[str, Any]
_LENGTH_BYTES = 8
_SCALARS = (bool, int, float, str, type(None))


@define(eq=False)
class Wholes:
    """The layers of one sequence that are kept whole: implements `live.Part`.

    `empty` are the model's own caches for these layers, never filled. A failed forward may have
    changed them for good: then they can neither be run nor kept any more, only emptied.
    """

    spec: CacheSpec
    empty: Sequence[object]
    _leaves: Sequence[object]
    interior: bool = False
    _broken: bool = field(default=False, init=False)
    _staged: Rows | None = field(default=None, init=False)

    @classmethod
    def of(cls, spec: CacheSpec, empty: Sequence[object]) -> "Wholes":
        """Caches such as those in `empty`."""
        return cls(spec, empty, copy.deepcopy(empty))

    @property
    def layers(self) -> Sequence[int]:
        """See `Part.layers`."""
        return self.spec.layers_of(LayerKind.WHOLE)

    @property
    def leaves(self) -> Sequence[object]:
        """See `Part.leaves`. Raises IntegrityError after a forward that failed."""
        if self._broken:
            raise IntegrityError("the caches were left half-way by a forward that failed")
        return self._leaves

    @property
    def nbytes(self) -> int:
        """See `Part.nbytes`."""
        return sum(array.nbytes for array in self.lazy())

    def blank(self, count: int) -> Rows:
        """See `Part.blank`."""
        rows = Rows(0, count, whole={})
        self._staged = rows if count else None
        return rows

    def adopt(self, length: int) -> None:
        """See `Part.adopt`. Raises ValueError for bytes that are no such cache."""
        staged, self._staged = self._staged, None
        if staged is None or staged.stop != length or staged.whole is None:
            self.rewind(length)
            return
        self.rewind(0)
        for layer, leaf in zip(self.layers, self.leaves, strict=True):
            unpack(staged.whole[f"c{layer}"], leaf)

    def grow(self, capacity: int) -> None:
        """They grow as they like."""

    def ran(self, count: int) -> None:
        """See `Part.ran`. They count for themselves."""

    def rewind(self, length: int) -> None:
        """See `Part.rewind`."""
        if length:
            raise IntegrityError(f"a cache of an unknown kind cannot go to {length} rows")
        self._leaves, self._broken = copy.deepcopy(self.empty), False

    def mark(self) -> Undo:
        """See `Part.mark`; there is no way back, so what is there is given up."""
        return self._give_up

    def rows(self, start: int, stop: int) -> Rows:
        """See `Part.rows`."""
        pairs = zip(self.layers, self.leaves, strict=True)
        return Rows(start, stop, whole={f"c{layer}": pack(leaf) for layer, leaf in pairs})

    def lazy(self) -> Sequence[mx.array]:
        """See `Part.lazy`."""
        return [array for leaf in self._leaves for array in arrays(leaf)]

    def _give_up(self) -> None:
        self._broken = True


def arrays(value: object) -> Iterable[mx.array]:
    """All arrays in a cache object."""
    if isinstance(value, mx.array):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from arrays(item)
    elif isinstance(value, dict):
        yield from arrays(list(value.values()))
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from arrays(list(vars(value).values()))


def pack(leaf: object) -> RowArray:
    """All that is in the attributes of `leaf`: a JSON tree and the arrays' bytes, [bytes] uint8."""
    parts: list[bytes] = []
    tree = json.dumps(_packed(leaf, parts)).encode()
    head = len(tree).to_bytes(_LENGTH_BYTES, "little")
    return np.frombuffer(b"".join((head, tree, *parts)), np.uint8)


def unpack(packed: RowArray, leaf: object) -> None:
    """Give the never filled `leaf` all that was packed. Raises ValueError for other bytes."""
    data = packed.tobytes()
    at = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    try:
        _unpacked(json.loads(data[_LENGTH_BYTES:at]), _Reader(data, at), leaf)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"these bytes are no {type(leaf).__name__}: {error}") from error


@define
class _Reader:
    data: bytes
    at: int

    def take(self, count: int) -> bytes:
        self.at += count
        if self.at > len(self.data):
            raise ValueError("the bytes of an array are missing")
        return self.data[self.at - count : self.at]


def _packed(value: object, parts: list[bytes]) -> _Node:
    if isinstance(value, mx.array):
        parts.append(_bytes(value))
        return {"array": [str(value.dtype).rpartition(".")[2], list(value.shape), len(parts[-1])]}
    if isinstance(value, _SCALARS):
        return {"value": value}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_packed(item, parts) for item in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _packed(item, parts) for key, item in value.items()}}
    if hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
        return {"object": {key: _packed(item, parts) for key, item in vars(value).items()}}
    return {"own": None}  # what it has when it is new; the probe tells whether that will do


def _unpacked(node: _Node, reader: _Reader, own: Any) -> object:
    ((kind, held),) = node.items()
    if kind == "array":
        dtype, shape, count = held
        return _array(dtype, shape, count, reader)
    if kind == "value":
        return held
    if kind in ("list", "tuple"):
        fits = isinstance(own, list | tuple) and len(own) == len(held)
        items = [
            _unpacked(item, reader, one)
            for item, one in zip(held, own if fits else [None] * len(held), strict=True)
        ]
        return items if kind == "list" else tuple(items)
    if kind == "dict":
        mapping = own if isinstance(own, dict) else {}
        return {key: _unpacked(item, reader, mapping.get(key)) for key, item in held.items()}
    if kind == "object":
        for key, item in held.items():
            setattr(own, key, _unpacked(item, reader, getattr(own, key, None)))
    return own


def _bytes(array: mx.array) -> bytes:
    flat = mx.contiguous(array).reshape(-1)
    return np.asarray(flat.view(mx.uint8)).tobytes() if flat.size else b""


def _array(dtype: str, shape: list[int], count: int, reader: _Reader) -> mx.array:
    data, kind = reader.take(count), getattr(mx, "bool_" if dtype == "bool" else dtype)
    if not count:
        return mx.zeros(shape, kind)
    return mx.array(np.frombuffer(data, np.uint8)).view(kind).reshape(shape)
