"""Drives an engine as the loop does, one small plan at a time."""

from collections.abc import Sequence
from itertools import count

import numpy as np

from agentcache.domain.plan import PrefillChunk, StepPlan, StepResult
from agentcache.domain.request import Sampling
from agentcache.domain.tokens import tokens
from agentcache.ports.engine import Engine
from agentcache.ports.rows import Rows

GREEDY = Sampling(temperature=0)


class Driver:
    """Submits and collects; numbers the steps."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._numbers = count()

    def step(self, *prefill: PrefillChunk, decode: Sequence[int] = ()) -> StepResult:
        """One step, collected at once."""
        self.submit(*prefill, decode=decode)
        return self.engine.collect()

    def submit(self, *prefill: PrefillChunk, decode: Sequence[int] = ()) -> None:
        """One step, not yet collected."""
        self.engine.submit(StepPlan(next(self._numbers), prefill, tuple(decode)))

    def prefill(
        self,
        sequence: int,
        ids: Sequence[int],
        start: int = 0,
        *,
        chunk: int = 4096,
        sampling: Sampling = GREEDY,
    ) -> int:
        """Run `ids` in chunks; the token that is sampled after them."""
        for first in range(0, len(ids), chunk):
            last = first + chunk >= len(ids)
            part = tokens(ids[first : first + chunk])
            result = self.step(
                PrefillChunk(sequence, start + first, part, sampling if last else None)
            )
            assert not result.failed
        return result.sampled[0].token

    def decode(self, *sequences: int, steps: int = 1) -> list[list[int]]:
        """The tokens that each of `sequences` says in so many steps."""
        said: dict[int, list[int]] = {sequence: [] for sequence in sequences}
        for _ in range(steps):
            result = self.step(decode=sequences)
            assert not result.failed
            for one in result.sampled:
                said[one.sequence].append(one.token)
        return list(said.values())

    def begin(
        self,
        sequence: int,
        ids: Sequence[int],
        *,
        capacity: int = 128,
        chunk: int = 4096,
        sampling: Sampling = GREEDY,
    ) -> int:
        """Start a sequence with a prompt; its first token."""
        self.engine.start(sequence, capacity)
        return self.prefill(sequence, ids, chunk=chunk, sampling=sampling)

    def restore(self, sequence: int, rows: Rows, *, capacity: int = 128) -> None:
        """Start a sequence from copied rows [0, n)."""
        fill(self.engine.start(sequence, capacity, rows.stop), rows)
        self.engine.adopt(sequence, rows.stop)


def copied(rows: Rows) -> Rows:
    """`rows` with arrays of their own."""
    held = (rows.full, rows.window, rows.state)
    parts = [{name: np.array(array) for name, array in part.items()} for part in held]
    return Rows(rows.start, rows.stop, *parts)


def fill(out: Rows, rows: Rows) -> None:
    """Write `rows` into the arrays of `out`."""
    for into, source in ((out.full, rows.full), (out.window, rows.window), (out.state, rows.state)):
        assert into.keys() == source.keys()
        for name, array in source.items():
            np.copyto(into[name], array)


def same_bits(one: Rows, other: Rows) -> bool:
    """Whether two ranges of rows are equal to the bit."""
    return all(
        a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)
        for a, b in ((one.full, other.full), (one.window, other.window), (one.state, other.state))
    )
