"""A clock that stands still until it is told to go on."""

from attrs import define


@define(eq=False)
class ManualClock:
    """A Clock for tests and simulations; both times move together unless `jump` is used."""

    now: float = 0.0
    date: float = 1_700_000_000.0

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        return self.now

    def wall(self) -> float:
        """Seconds since 1970-01-01 UTC."""
        return self.date

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        if seconds < 0:
            raise ValueError(f"time does not go back by {-seconds} s")
        self.now += seconds
        self.date += seconds

    def jump(self, seconds: float) -> None:
        """Set the clock on the wall forward or back, as NTP or a person does."""
        self.date += seconds
