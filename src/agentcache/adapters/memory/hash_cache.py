"""One sequence of the memory engine: its rows in numpy buffers, and what was asked and sampled."""

import numpy as np
from attrs import define, field

from agentcache.domain.guide import Guide
from agentcache.domain.request import Sampling
from agentcache.domain.spec import CacheSpec, LayerKind
from agentcache.ports.rows import NUMPY_DTYPE, RowArray, Rows, empty_rows


@define(eq=False)
class HashCache:
    """Buffers [layers, 1, capacity, dim] a role (of windows too), and the state arrays.

    `epoch` changes when the caller resets it; with a `problem` it has failed and runs no more. It
    is `stuck` if that is its guide's.
    """

    spec: CacheSpec
    capacity: int
    length: int = 0
    sampling: Sampling | None = None
    guide: Guide | None = None
    token: int | None = None
    problem: str | None = None
    stuck: bool = False
    epoch: int = 0
    traced: bool = False
    told: set[int] = field(factory=set)  # positions after which something was sampled
    buffers: dict[str, RowArray] = field(init=False)
    state: dict[str, RowArray] = field(init=False)

    @buffers.default
    def _blank(self) -> dict[str, RowArray]:
        return _buffers(self.spec, self.capacity)

    @state.default
    def _no_state(self) -> dict[str, RowArray]:
        zero = empty_rows(self.spec, 0, 0).state
        return {name: np.zeros_like(array) for name, array in zero.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in (*self.buffers.values(), *self.state.values()))

    def rows(self, start: int, stop: int, length: int) -> Rows:
        """Views of [start, stop); the windows' and the states' only if `stop` is `length`."""
        full: dict[str, RowArray] = {}
        window: dict[str, RowArray] = {}
        for group in self.spec.groups:
            for role, _ in group.roles():
                if group.kind is LayerKind.FULL:
                    full[role] = self.buffers[role][:, :, start:stop]
                elif stop == length and group.window is not None:
                    first = max(start, stop - group.window)
                    window[role] = self.buffers[role][:, :, first:stop]
        return Rows(start, stop, full, window, self.state if stop == length else {})

    def head(self, stop: int) -> Rows:
        """Views of the first `stop` rows, of full layers alone where these are not all."""
        return self.rows(0, stop, self.length)

    def everything(self) -> Rows:
        """Views of all rows."""
        return self.rows(0, self.length, self.length)

    def append(self, rows: Rows) -> None:
        """Copy `rows` behind those that are there."""
        for role, array in (*rows.full.items(), *rows.window.items()):
            self.buffers[role][:, :, rows.start : rows.stop] = array
        self.state.update(rows.state)
        self.length = rows.stop

    def grow(self, capacity: int) -> None:
        """Copy everything into larger buffers."""
        larger = _buffers(self.spec, capacity)
        for role, array in self.buffers.items():
            larger[role][:, :, : self.length] = array[:, :, : self.length]
        self.buffers, self.capacity = larger, capacity

    def adopt(self, length: int) -> None:
        """Continue after the first `length` rows."""
        self.length = length
        if length == 0:
            self.state = self._no_state()

    def reset(self, length: int) -> None:
        """Forget the rows from `length` on, and all that came of them."""
        self.adopt(length)
        self.sampling = self.token = self.problem = None
        self.stuck = False
        self.told = {position for position in self.told if position < length}
        self.epoch += 1


def _buffers(spec: CacheSpec, capacity: int) -> dict[str, RowArray]:
    return {
        role: np.empty((len(group.layers), group.heads, capacity, dim), NUMPY_DTYPE[spec.dtype])
        for group in spec.groups
        for role, dim in group.roles()
    }
