"""What a sequence said at its last positions, kept as logits until somebody asks."""

from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import mlx.core as mx
import numpy as np
from attrs import define, field, frozen
from numpy.typing import NDArray

from agentcache.adapters.mlx.sampling import Logits, log_shares
from agentcache.domain.plan import Found
from agentcache.domain.trace import TOP, TRACED, Top

_AHEAD = 2  # positions that may be taken back before anybody asks


@frozen(eq=False)
class _Position:
    """Row `row` of `logits` [sequences, vocabulary] is what came after `position`."""

    position: int
    logits: Logits
    row: int


@define(eq=False)
class Recollection:
    """The logits of the last positions that were run one by one, shared with those of the batch."""

    _last: "deque[_Position]" = field(factory=lambda: deque(maxlen=TRACED + _AHEAD), init=False)

    def add(self, position: int, logits: Logits, row: int) -> None:
        """Row `row` of `logits` came after `position`."""
        self._last.append(_Position(position, logits, row))

    def cut(self, length: int) -> None:
        """Forget the positions from `length` on."""
        kept = [one for one in self._last if one.position < length]
        self._last.clear()
        self._last.extend(kept)

    def take(self, stop: int) -> tuple[Top, ...]:
        """What came after the last positions before `stop`, without gaps. Forgets everything."""
        at = {one.position: one for one in self._last}
        self._last.clear()
        tops: list[Top] = []
        for position in range(stop - 1, max(stop - 1 - TRACED, -1), -1):
            top = _top(at[position]) if position in at else ()
            if not top:
                break
            tops.append(top)
        return tuple(reversed(tops))


def found(logits: mx.array, asked: Sequence[Sequence[int]]) -> Found:
    """How likely the tokens `asked` for are by each row of `logits`; NaN for those there are not.

    Where the device fails all are NaN: nothing is known then.
    """
    nothing = tuple((float("nan"),) * len(ids) for ids in asked)
    with suppress(RuntimeError), np.errstate(invalid="ignore"):
        rows = np.asarray(logits.astype(mx.float32))
        return tuple(_of(log_shares(row), ids) for row, ids in zip(rows, asked, strict=True))
    return nothing


def _of(shares: NDArray[np.float64], ids: Sequence[int]) -> tuple[float, ...]:
    return tuple(float(shares[one]) if one < shares.size else float("nan") for one in ids)


def _top(one: _Position) -> Top:
    """Nothing where the logits are no numbers."""
    with np.errstate(invalid="ignore"):
        logits = np.asarray(one.logits[one.row])
        shares = log_shares(logits)
    if not np.isfinite(logits.max()) or not np.isfinite(shares.max()):
        return ()
    count = min(TOP, shares.size)
    top = np.argpartition(-shares, count - 1)[:count]
    ordered = top[np.argsort(-shares[top], kind="stable")]
    return tuple((int(n), float(shares[n])) for n in ordered if np.isfinite(shares[n]))
