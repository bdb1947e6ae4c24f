"""The port to time."""

from typing import Protocol


class Clock(Protocol):
    """Two clocks: one that never jumps, for waiting, and the one on the wall, for records."""

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        ...

    def wall(self) -> float:
        """Seconds since 1970-01-01 UTC; may jump."""
        ...
