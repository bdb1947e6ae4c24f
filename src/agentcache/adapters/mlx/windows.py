"""The window layers of a sequence as one part of its caches."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from attrs import define, field

from agentcache.adapters.mlx.arrays import to_device, to_host
from agentcache.adapters.mlx.handles import Buffer
from agentcache.adapters.mlx.live import Undo
from agentcache.adapters.mlx.window_leaf import AnyWindow, DeviceWindow, HostWindow
from agentcache.domain.errors import IntegrityError
from agentcache.domain.spec import CacheSpec, LayerGroup, LayerKind
from agentcache.ports.rows import RowArray, Rows, empty_rows


@define(eq=False)
class Windows:
    """The window layers of one sequence: implements `live.Part`.

    Between `blank` and `adopt` their rows are in host memory; after it, on a host, right there.
    """

    spec: CacheSpec
    leaves: Sequence[AnyWindow]
    interior: bool = False
    _staged: Rows | None = field(default=None, init=False)

    @property
    def layers(self) -> Sequence[int]:
        """See `Part.layers`."""
        return self.spec.layers_of(LayerKind.WINDOW)

    @property
    def nbytes(self) -> int:
        """See `Part.nbytes`."""
        staged = self._staged.window.values() if self._staged else ()
        return sum(one.nbytes for one in (*self.leaves, *staged))

    def blank(self, count: int) -> Rows:
        """See `Part.blank`."""
        rows = Rows(0, count, window=empty_rows(self.spec, 0, count).window)
        self._staged = rows if count else None
        return rows

    def adopt(self, length: int) -> None:
        """See `Part.adopt`."""
        staged, self._staged = self._staged, None
        if staged is None or staged.stop != length:
            self.rewind(length)
            return
        for group in self.spec.groups_of(LayerKind.WINDOW):
            (k, _), (v, _) = group.roles()
            for n, leaf in enumerate(self._members(group)):
                keys, values = staged.window[k][n : n + 1], staged.window[v][n : n + 1]
                _fill(leaf, keys, values, length, self.spec.dtype)

    def grow(self, capacity: int) -> None:
        """See `Part.grow`; nothing is copied before there are rows for it."""
        for leaf in self.leaves:
            leaf.capacity = capacity

    def ran(self, count: int) -> None:
        """See `Part.ran`. A window counts for itself."""

    def rewind(self, length: int) -> None:
        """See `Part.rewind`."""
        for leaf in self.leaves:
            if length == 0:
                leaf.clear()
            elif leaf.offset != length:
                raise IntegrityError(f"a window after {leaf.offset} rows cannot go to {length}")

    def mark(self) -> Undo:
        """See `Part.mark`."""
        undos = [leaf.mark() for leaf in self.leaves]

        def undo() -> None:
            for one in undos:
                one()

        return undo

    def rows(self, start: int, stop: int) -> Rows:
        """See `Part.rows`; these are copies."""
        found: dict[str, RowArray] = {}
        for group in self.spec.groups_of(LayerKind.WINDOW):
            count = min(group.window or stop, stop - start)
            last = [leaf.last(count) for leaf in self._members(group)]
            for which, (role, _) in enumerate(group.roles()):
                found[role] = np.concatenate([_on_host(pair[which]) for pair in last])
        return Rows(start, stop, window=found)

    def lazy(self) -> Sequence[mx.array]:
        """See `Part.lazy`."""
        held = [leaf for leaf in self.leaves if isinstance(leaf, DeviceWindow) and leaf.held]
        return [array for leaf in held for array in (leaf.keys, leaf.values)]

    def _members(self, group: LayerGroup) -> list[AnyWindow]:
        layers = self.layers
        return [self.leaves[layers.index(layer)] for layer in group.layers]


def _fill(leaf: AnyWindow, keys: RowArray, values: RowArray, length: int, dtype: str) -> None:
    held = keys.shape[2]
    if isinstance(leaf, HostWindow):
        leaf.put(keys.view(np.float32), values.view(np.float32), held, length)
    else:
        leaf.put(to_device(keys, dtype), to_device(values, dtype), held, length)


def _on_host(rows: Buffer | mx.array) -> RowArray:
    return to_host(rows) if isinstance(rows, mx.array) else rows
