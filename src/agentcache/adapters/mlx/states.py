"""Layers that keep a summary of all tokens: convolutions and state spaces, in mlx-lm's caches."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Protocol, cast

import mlx.core as mx
from attrs import define, field, frozen
from mlx_lm.models.cache import ArraysCache

from agentcache.adapters.mlx.arrays import to_device, to_host
from agentcache.adapters.mlx.live import Undo
from agentcache.domain.errors import IntegrityError
from agentcache.domain.spec import CacheSpec, LayerKind
from agentcache.ports.rows import RowArray, Rows, empty_rows


class StateLeaf(Protocol):
    """mlx-lm's `ArraysCache`: arrays [1, ...], None before the first token."""

    cache: list[mx.array | None]


@define(eq=False)
class States:
    """The state layers of one sequence: implements `live.Part`.

    Models put new arrays into these caches and never write into old ones, so going back is putting
    the old ones back.
    """

    spec: CacheSpec
    leaves: Sequence[StateLeaf]
    interior: bool = False
    _length: int = field(default=0, init=False)
    _staged: Rows | None = field(default=None, init=False)

    @classmethod
    def of(cls, spec: CacheSpec) -> "States":
        """Caches that are empty yet."""
        layers = [spec.layers[index] for index in spec.layers_of(LayerKind.STATE)]
        return cls(spec, [_cache([None] * len(layer.state)) for layer in layers])

    @property
    def layers(self) -> Sequence[int]:
        """See `Part.layers`."""
        return self.spec.layers_of(LayerKind.STATE)

    @property
    def nbytes(self) -> int:
        """See `Part.nbytes`."""
        staged = self._staged.state.values() if self._staged else ()
        return sum(array.nbytes for array in (*self.lazy(), *staged))

    def blank(self, count: int) -> Rows:
        """See `Part.blank`."""
        rows = Rows(0, count, state=empty_rows(self.spec, 0, 0).state if count else {})
        self._staged = rows if count else None
        return rows

    def adopt(self, length: int) -> None:
        """See `Part.adopt`."""
        staged, self._staged = self._staged, None
        if staged is None or staged.stop != length:
            self.rewind(length)
            return
        for layer, leaf in zip(self.layers, self.leaves, strict=True):
            leaf.cache = [
                to_device(staged.state[f"s{layer}.{n}"], one.dtype)[None]
                for n, one in enumerate(self.spec.layers[layer].state)
            ]
        mx.eval(self.lazy())

    def grow(self, capacity: int) -> None:
        """A state never grows."""

    def ran(self, count: int) -> None:
        """See `Part.ran`: what may be a view of a chunk's large arrays would keep these alive."""
        if count > 1:
            for leaf in self.leaves:
                leaf.cache = [_taken(array, 0) for array in leaf.cache]

    def rewind(self, length: int) -> None:
        """See `Part.rewind`."""
        if length:
            raise IntegrityError(f"a state cannot go back to {length} rows")
        for leaf in self.leaves:
            leaf.cache = [None] * len(leaf.cache)

    def mark(self) -> Undo:
        """See `Part.mark`."""
        return partial(self._put, [list(leaf.cache) for leaf in self.leaves])

    def rows(self, start: int, stop: int) -> Rows:
        """See `Part.rows`."""
        state: dict[str, RowArray] = {}
        for layer, leaf in zip(self.layers, self.leaves, strict=True):
            for n, (array, one) in enumerate(
                zip(leaf.cache, self.spec.layers[layer].state, strict=True)
            ):
                if array is None:
                    raise IntegrityError(f"layer {layer} has no state after {stop} rows")
                state[f"s{layer}.{n}"] = _checked(array, one.shape)
        return Rows(start, stop, state=state)

    def lazy(self) -> Sequence[mx.array]:
        """See `Part.lazy`: what the next token needs is no part of this one's logits."""
        return [array for leaf in self.leaves for array in leaf.cache if array is not None]

    def _put(self, before: Sequence[list[mx.array | None]]) -> None:
        for leaf, arrays in zip(self.leaves, before, strict=True):
            leaf.cache = list(arrays)


@frozen(eq=False)
class StateBatch:
    """One state layer of several sequences as one cache of a batch, which the model fills."""

    members: Sequence[StateLeaf]
    leaf: StateLeaf

    @classmethod
    def of(cls, members: Iterable[object]) -> "StateBatch":
        """The members' arrays side by side. Raises TypeError before their first tokens."""
        found = [cast(StateLeaf, leaf) for leaf in members]
        columns = zip(*(leaf.cache for leaf in found), strict=True)
        return cls(
            found,
            _cache([mx.concatenate(cast(list[mx.array], list(column))) for column in columns]),
        )

    def give_back(self) -> None:
        """Hand each sequence its own arrays as they are now."""
        for n, member in enumerate(self.members):
            member.cache = [_taken(array, n) for array in self.leaf.cache]


def _cache(arrays: Sequence[mx.array | None]) -> StateLeaf:
    cache = cast(StateLeaf, ArraysCache(len(arrays)))
    cache.cache = list(arrays)
    return cache


def _taken(array: mx.array | None, n: int) -> mx.array | None:
    """A copy of one of a batch: a slice would keep all of it alive."""
    return None if array is None else array[mx.array([n])]


def _checked(array: mx.array, shape: tuple[int, ...]) -> RowArray:
    if array.shape != (1, *shape):
        raise IntegrityError(f"a state is {array.shape}, not {(1, *shape)}")
    found: RowArray = to_host(array)[0]
    return found
