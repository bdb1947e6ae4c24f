"""The contract of clocks, and what the manual one adds."""

import time

import pytest

from agentcache.adapters.clock import SystemClock
from agentcache.adapters.memory.clock import ManualClock
from agentcache.ports.clock import Clock
from agentcache.testing.clock import ClockContract


class TestClocks(ClockContract):
    @pytest.fixture(params=[SystemClock, ManualClock])
    def clock(self, request: pytest.FixtureRequest) -> Clock:
        made: Clock = request.param()
        return made


def test_the_system_clock_tells_the_time_of_the_machine():
    clock = SystemClock()
    before = time.time(), time.monotonic()
    now = clock.wall(), clock.monotonic()
    after = time.time(), time.monotonic()
    assert before[0] <= now[0] <= after[0]
    assert before[1] <= now[1] <= after[1]


def test_a_manual_clock_stands_still_until_it_is_advanced():
    clock = ManualClock(now=5.0, date=100.0)
    assert (clock.monotonic(), clock.wall()) == (5.0, 100.0)
    clock.advance(2.5)
    assert (clock.monotonic(), clock.wall()) == (7.5, 102.5)


def test_a_jump_of_the_wall_clock_leaves_the_monotonic_one_alone():
    clock = ManualClock(now=5.0, date=100.0)
    clock.jump(-60.0)
    assert (clock.monotonic(), clock.wall()) == (5.0, 40.0)


def test_a_manual_clock_refuses_to_go_back():
    with pytest.raises(ValueError, match="does not go back"):
        ManualClock().advance(-1.0)
