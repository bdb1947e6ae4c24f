"""What is told with every token: noted at once, and counted many at a time."""

from collections.abc import Callable, Iterable
from threading import Lock

from attrs import define, field
from prometheus_client import Metric
from prometheus_client.registry import Collector

Step = tuple[int, int, float]  # tokens, those of them that were decoded, seconds
_MOST = 512


@define(eq=False)
class Steady(Collector):
    """Notes of steps and of the seconds between tokens, which `settle` counts.

    A metric takes its time for each change, and more when the caches are cold, as they are between
    two steps of a model. As the first collector of a registry it has everything counted before a
    scrape goes on; it shows nothing itself. For use from any thread.
    """

    settle: Callable[[Iterable[Step], Iterable[float]], None]
    _steps: list[Step] = field(factory=list, init=False)
    _gaps: list[float] = field(factory=list, init=False)
    _lock: Lock = field(factory=Lock, init=False)

    def stepped(self, step: Step) -> None:
        """There was a step."""
        self._steps.append(step)
        if len(self._steps) >= _MOST:
            self.count()

    def said(self, seconds: float) -> None:
        """A token was said so many seconds after the one before."""
        self._gaps.append(seconds)
        if len(self._gaps) >= _MOST:
            self.count()

    def count(self) -> None:
        """Have all notes counted."""
        with self._lock:
            steps, gaps = self._steps[:], self._gaps[:]
            del self._steps[: len(steps)], self._gaps[: len(gaps)]
            self.settle(steps, gaps)

    def collect(self) -> Iterable[Metric]:
        """See Collector."""
        self.count()
        return ()
