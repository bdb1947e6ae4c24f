"""Paths through the lineage: segments from the root down, and how far each of them is used."""

from attrs import frozen

from agentcache.domain.segment import Segment
from agentcache.domain.session import Cursor


@frozen
class Step:
    """The rows [segment.start, stop) of one segment of a path."""

    segment: Segment
    stop: int


@frozen
class Match:
    """The longest usable beginning of a prompt: a path from the root down.

    `length` tokens agree; of them `restore` rows can be restored (`spec.restore_point`).
    """

    steps: tuple[Step, ...] = ()
    length: int = 0
    restore: int = 0

    @property
    def keys(self) -> tuple[bytes, ...]:
        """The segments of the path, the root's child first."""
        return tuple(step.segment.key for step in self.steps)

    @property
    def cursor(self) -> Cursor | None:
        """The end of the matched path; None when nothing matched."""
        return Cursor(self.steps[-1].segment.key, self.length) if self.steps else None

    def restoring(self) -> tuple[Step, ...]:
        """The part of the path that is needed to restore `restore` rows."""
        kept = [step for step in self.steps if step.segment.start < self.restore]
        return tuple(Step(step.segment, min(step.stop, self.restore)) for step in kept)
