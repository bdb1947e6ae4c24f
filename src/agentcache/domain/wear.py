"""Wear: how much was written within the last day."""

from collections import deque

from attrs import define, field

_HOUR = 3600.0
_DAY = 24


@define(eq=False)
class DailyBytes:
    """Bytes by the hour, of the last 24 whole hours and the present one. Seconds are monotonic."""

    _hours: "deque[tuple[int, int]]" = field(factory=deque, init=False)

    def add(self, nbytes: int, now: float) -> None:
        """So many bytes were written at `now`."""
        hour = int(now // _HOUR)
        before = self._hours.pop()[1] if self._hours and self._hours[-1][0] == hour else 0
        self._hours.append((hour, before + nbytes))
        self._forget(hour)

    def total(self, now: float) -> int:
        """Bytes written in the day before `now`."""
        self._forget(int(now // _HOUR))
        return sum(nbytes for _, nbytes in self._hours)

    def _forget(self, hour: int) -> None:
        while self._hours and self._hours[0][0] < hour - _DAY:
            self._hours.popleft()
