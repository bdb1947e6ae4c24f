"""What is told with every token: noted at once, and counted many at a time."""

from collections.abc import Callable, Iterable
from threading import Lock

from attrs import define, field
from prometheus_client import Metric
from prometheus_client.registry import Collector

Step = tuple[int, int, float]  # tokens, those of them that were decoded, seconds
MOST = 512


@define(eq=False)
class Steady(Collector):
    """Notes of steps and of the seconds between tokens, which `settle` counts.

    A metric takes its time for each change, and more when the caches are cold, as they are between
    two steps of a model. As the first collector of a registry it has everything counted before a
    scrape goes on; it shows nothing itself. Whoever notes something has it counted once there are
    MOST notes of a kind. For use from any thread.
    """

    settle: Callable[[Iterable[Step], Iterable[float]], None]
    steps: list[Step] = field(factory=list, init=False)
    gaps: list[float] = field(factory=list, init=False)
    _lock: Lock = field(factory=Lock, init=False)

    def count(self) -> None:
        """Have all notes counted."""
        with self._lock:
            steps, gaps = self.steps[:], self.gaps[:]
            del self.steps[: len(steps)], self.gaps[: len(gaps)]
            self.settle(steps, gaps)

    def collect(self) -> Iterable[Metric]:
        """See Collector."""
        self.count()
        return ()
