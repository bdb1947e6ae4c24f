"""What whoever finds no place is told: why, and when it is worth coming back."""

from attrs import define, field

from agentcache.domain.errors import Overloaded

LEAST_SECONDS = 1.0
MOST_SECONDS = 60.0
_LEARNED = 0.1  # of what a turn took, into what turns are thought to take


@define(eq=False)
class Patience:
    """Knows how long turns took lately. `rounds` are as many turns as have a place at a time."""

    _turn_seconds: float = field(default=1.0, init=False)

    def learn(self, seconds: float) -> None:
        """A turn kept its place for so long."""
        self._turn_seconds += _LEARNED * (seconds - self._turn_seconds)

    def full(self, waiting: int, rounds: float) -> Overloaded:
        """The refusal of a turn for which the queue has no room, with `rounds` before it."""
        problem = f"{waiting} turns are waiting already"
        return Overloaded(problem, self._retry_after(rounds), "queue_full")

    def late(self, waited: float, rounds: float) -> Overloaded:
        """The refusal of a turn that `waited` so many seconds in vain."""
        problem = f"no place became free in {waited:.0f} s"
        return Overloaded(problem, self._retry_after(rounds), "queue_timeout")

    def _retry_after(self, rounds: float) -> float:
        return min(MOST_SECONDS, max(LEAST_SECONDS, rounds * self._turn_seconds))
