"""What a model's cache is made of, and what follows from it: bytes per row, places to continue."""

from collections.abc import Iterable, Mapping
from enum import Enum
from functools import cached_property

from attrs import field, frozen
from attrs.validators import ge, optional

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "uint8": 1}


_LEAST_SLACK, _MOST_SLACK = 32, 256


def window_room(window: int) -> int:
    """How many rows a live window may hold: with slack, so that it is rarely moved."""
    return window + max(_LEAST_SLACK, min(_MOST_SLACK, window))


class LayerKind(Enum):
    """How a layer remembers."""

    FULL = "full"  # the row of every token
    WINDOW = "window"  # the rows of the last `window` tokens
    STATE = "state"  # a fixed-size summary of all tokens so far
    WHOLE = "whole"  # nobody knows how: all that its cache holds is kept, as bytes


@frozen
class StateArray:
    """One array of a state layer, without its batch axis."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        size = ITEM_BYTES[self.dtype]
        for extent in self.shape:
            size *= extent
        return size


@frozen
class LayerSpec:
    """One leaf cache of the model; a layer with several caches counts as several.

    `heads`, `key_dim` and `value_dim` are those of the cache (key/value heads, and the two dims may
    differ, as under MLA). They are zero for state layers, which have `state` instead, and for those
    kept whole, which have a `reason`, and an estimate of what a token adds to their bytes.
    """

    kind: LayerKind
    heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    window: int | None = field(default=None, validator=optional(ge(1)))
    state: tuple[StateArray, ...] = ()
    reason: str = field(default="", eq=False)
    token_bytes: int = field(default=0, eq=False)

    @classmethod
    def whole(cls, reason: str, token_bytes: int = 0) -> "LayerSpec":
        """A layer whose cache is kept as it is, because of `reason`."""
        return cls(LayerKind.WHOLE, reason=reason, token_bytes=token_bytes)

    @classmethod
    def full(cls, heads: int, key_dim: int, value_dim: int | None = None) -> "LayerSpec":
        """A layer that keeps the row of every token."""
        return cls(LayerKind.FULL, heads, key_dim, key_dim if value_dim is None else value_dim)

    def live_rows(self, tokens: int) -> int:
        """How many rows a live cache with room for `tokens` holds, slack included."""
        if self.kind is LayerKind.WINDOW and self.window is not None:
            return min(tokens, window_room(self.window))
        return tokens if self.kind is LayerKind.FULL else 0

    @property
    def row_items(self) -> int:
        """How many numbers one token's row of this layer holds, keys and values together."""
        return self.heads * (self.key_dim + self.value_dim)


@frozen
class LayerGroup:
    """Layers of one shape, whose rows are stacked into one tensor of keys and one of values."""

    name: str
    kind: LayerKind
    heads: int
    key_dim: int
    value_dim: int
    window: int | None
    layers: tuple[int, ...]

    def roles(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """The names of the group's two tensors, each with its dim."""
        return (f"{self.name}.k", self.key_dim), (f"{self.name}.v", self.value_dim)


@frozen(slots=False)
class CacheSpec:
    """A model's cache: its leaf caches in order, and the dtype in which rows are computed."""

    layers: tuple[LayerSpec, ...]
    dtype: str = field(default="float32")

    @dtype.validator
    def _known_dtype(self, _attribute: object, value: str) -> None:
        if value not in ITEM_BYTES:
            raise ValueError(f"dtype {value!r} is not one of {', '.join(ITEM_BYTES)}")

    @cached_property
    def groups(self) -> tuple[LayerGroup, ...]:
        """The token-indexed layers, those of one shape together, in order of first appearance."""
        members: dict[LayerSpec, list[int]] = {}
        for index, layer in enumerate(self.layers):
            if layer.kind in (LayerKind.FULL, LayerKind.WINDOW):
                members.setdefault(layer, []).append(index)
        return tuple(
            LayerGroup(
                f"g{n}", one.kind, one.heads, one.key_dim, one.value_dim, one.window, tuple(indices)
            )
            for n, (one, indices) in enumerate(members.items())
        )

    def groups_of(self, kind: LayerKind) -> tuple[LayerGroup, ...]:
        """The groups of one kind of layer."""
        return tuple(group for group in self.groups if group.kind is kind)

    def layers_of(self, kind: LayerKind) -> tuple[int, ...]:
        """The leaf caches of one kind of layer, ascending."""
        return tuple(n for n, layer in enumerate(self.layers) if layer.kind is kind)

    @cached_property
    def row_bytes(self) -> int:
        """Native bytes of one token's row over all `full` layers."""
        return self._row_bytes(LayerKind.FULL)

    @cached_property
    def window_row_bytes(self) -> int:
        """Native bytes of one token's row over all `window` layers."""
        return self._row_bytes(LayerKind.WINDOW)

    @cached_property
    def state_bytes(self) -> int:
        """Native bytes of one checkpoint of all `state` layers."""
        return sum(array.nbytes for layer in self.layers for array in layer.state)

    def live_bytes(self, tokens: int) -> int:
        """Bytes that the live caches of a sequence take which has room for `tokens`."""
        item = ITEM_BYTES[self.dtype]
        rows = sum(one.live_rows(tokens) * one.row_items * item for one in self.layers)
        return rows + tokens * sum(one.token_bytes for one in self.layers) + self.state_bytes

    @cached_property
    def whole(self) -> Mapping[str, str]:
        """The names of the caches that are kept whole, each with the reason."""
        return {
            f"c{index}": layer.reason
            for index, layer in enumerate(self.layers)
            if layer.kind is LayerKind.WHOLE
        }

    @cached_property
    def interior_restorable(self) -> bool:
        """Whether a sequence can continue at any row, not only at the end of a segment."""
        return all(layer.kind is LayerKind.FULL for layer in self.layers)

    @cached_property
    def has_windows(self) -> bool:
        """Whether what follows a segment needs the last rows of a window from it."""
        return any(layer.kind is LayerKind.WINDOW for layer in self.layers)

    def restore_point(self, limit: int, ends: Iterable[int]) -> int:
        """The largest place to continue that is not past `limit`; 0 is always one.

        `ends` are the positions at which a matched segment ends with all it takes to continue.
        """
        if self.interior_restorable:
            return max(limit, 0)
        return max((end for end in ends if end <= limit), default=0)

    def _row_bytes(self, kind: LayerKind) -> int:
        items = sum(one.row_items for one in self.layers if one.kind is kind)
        return items * ITEM_BYTES[self.dtype]
