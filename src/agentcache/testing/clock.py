"""What every clock promises."""

import pytest

from agentcache.ports.clock import Clock


class ClockContract:
    """Subclass it, and override the fixture `clock`."""

    @pytest.fixture
    def clock(self) -> Clock:
        """The clock under test."""
        raise NotImplementedError("override the fixture `clock`")

    def test_monotonic_time_never_goes_back(self, clock: Clock) -> None:
        readings = [clock.monotonic() for _ in range(100)]
        assert readings == sorted(readings)

    def test_both_times_are_numbers_of_seconds(self, clock: Clock) -> None:
        assert isinstance(clock.monotonic(), float)
        assert isinstance(clock.wall(), float)
