"""Wear: what was written within the last day."""

from hypothesis import given
from hypothesis import strategies as st

from agentcache.domain.wear import DailyBytes

HOUR = 3600.0


def test_bytes_add_up_within_a_day_and_are_forgotten_after_it() -> None:
    wear = DailyBytes()
    wear.add(5, 10.0)
    wear.add(7, 20.0)
    wear.add(1, 23 * HOUR)
    assert wear.total(24 * HOUR) == 13
    assert wear.total(25 * HOUR) == 1
    assert wear.total(99 * HOUR) == 0


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 10**12))))
def test_no_more_is_told_than_was_written_in_a_day_and_an_hour_and_no_less_than_in_a_day(
    writes: list[tuple[float, int]],
) -> None:
    wear, done = DailyBytes(), []
    for now, nbytes in sorted(writes):
        wear.add(nbytes, now)
        done.append((now, nbytes))
        day, longer = (
            sum(one for at, one in done if at > now - hours * HOUR) for hours in (24, 25)
        )
        assert day <= wear.total(now) <= longer
        assert len(wear._hours) <= 25
