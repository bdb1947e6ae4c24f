"""The caches of one sequence, whatever their kinds."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import mlx.core as mx
from attrs import define

from agentcache.domain.errors import IntegrityError
from agentcache.ports.rows import RowArray, Rows

Undo = Callable[[], None]


class Part(Protocol):
    """The caches of one kind of layer in one sequence."""

    @property
    def layers(self) -> Sequence[int]:
        """Which leaf caches of the spec they are, ascending."""
        ...

    @property
    def leaves(self) -> Sequence[object]:
        """What stands for each when the model runs this sequence alone."""
        ...

    @property
    def interior(self) -> bool:
        """Whether they hold a row for every token."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes held, slack included."""
        ...

    def blank(self, count: int) -> Rows:
        """Writable arrays for what they hold after `count` tokens."""
        ...

    def adopt(self, length: int) -> None:
        """Continue after `length` tokens, whose blank arrays are filled."""
        ...

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` tokens in all. Raises MemoryError and changes nothing."""
        ...

    def ran(self, count: int) -> None:
        """The model has run `count` tokens more."""
        ...

    def rewind(self, length: int) -> None:
        """Forget all rows from `length` on: any where `interior`, else 0."""
        ...

    def mark(self) -> Undo:
        """What puts them back to how they are now, after at most one more forward."""
        ...

    def rows(self, start: int, stop: int) -> Rows:
        """What a segment [start, stop) holds of them; `stop` is where they are, or `interior`."""
        ...

    def lazy(self) -> Sequence[mx.array]:
        """What may still have to be computed, also when the logits have been."""
        ...


@runtime_checkable
class Holding(Protocol):
    """A part that has the row of every token, and leaves them as they are when they run again."""

    def hold(self, count: int) -> None:
        """The next `count` rows to come are the last ones that are there."""
        ...


@define(eq=False)
class LiveCache:
    """All caches of one sequence. `length` counts the tokens that it has run."""

    capacity: int
    parts: Sequence[Part]
    length: int = 0

    @property
    def leaves(self) -> Sequence[object]:
        """The caches in the model's order."""
        found: dict[int, object] = {}
        for part in self.parts:
            found.update(zip(part.layers, part.leaves, strict=True))
        return [found[layer] for layer in sorted(found)]

    @property
    def nbytes(self) -> int:
        """Bytes held, slack included."""
        return sum(part.nbytes for part in self.parts)

    def blank(self, count: int) -> Rows:
        """Writable rows [0, count), to be filled and then adopted."""
        return _joined(0, count, [part.blank(count) for part in self.parts])

    def adopt(self, length: int) -> None:
        """Continue after the first `length` of the blank rows, which are filled by now."""
        for part in self.parts:
            part.adopt(length)
        self.length = length

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` rows in all. Raises MemoryError and loses nothing."""
        for part in self.parts:
            part.grow(capacity)
        self.capacity = capacity

    def ran(self, count: int) -> None:
        """The model has run `count` tokens more."""
        for part in self.parts:
            part.ran(count)
        self.length += count

    def rewind(self, length: int) -> None:
        """Forget all rows from `length` on: any if every layer has them, else 0 or as they are."""
        if length != self.length:
            for part in self.parts:
                part.rewind(length)
        self.length = length

    def mark(self) -> Undo:
        """What puts everything back to how it is now, also where a forward stopped half-way."""
        undos, length = [part.mark() for part in self.parts], self.length

        def undo() -> None:
            for one in undos:
                one()
            self.length = length

        return undo

    def rows(self, start: int, stop: int) -> Rows:
        """The rows [start, stop), and if `stop` is the length, what only the end has."""
        parts = [part for part in self.parts if part.interior or stop == self.length]
        return _joined(start, stop, [part.rows(start, stop) for part in parts])

    def hold(self, count: int) -> None:
        """The last `count` rows are run again with the next forward, and stay as they are."""
        for part in self.parts:
            if not isinstance(part, Holding):
                raise IntegrityError("rows of windows and states cannot be run again")
            part.hold(count)
        self.length -= count

    def settle(self) -> None:
        """Start to compute what is still lazy."""
        if arrays := [array for part in self.parts for array in part.lazy()]:
            mx.async_eval(arrays)  # type: ignore[no-untyped-call]


def _joined(start: int, stop: int, parts: Sequence[Rows]) -> Rows:
    full: dict[str, RowArray] = {}
    window: dict[str, RowArray] = {}
    state: dict[str, RowArray] = {}
    whole = None
    for part in parts:
        full |= part.full
        window |= part.window
        state |= part.state
        whole = whole if part.whole is None else part.whole
    return Rows(start, stop, full, window, state, whole)
