"""The planner while everybody decodes: the step of before once more, and when it is not."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcache.domain.errors import IntegrityError
from agentcache.domain.plan import Plan, StepPlan
from agentcache.domain.spec import CacheSpec
from agentcache.domain.turn import SEGMENT_ROWS, TurnState
from tests.unit.domain_strategies import FULL, cache_specs
from tests.unit.simulated_driver import Drive, drive_of, request, until


def _decoding(turns: int = 2, spec: CacheSpec = FULL, **limits: float) -> Drive:
    """A drive in which so many turns decode."""
    drive = drive_of(spec, **limits)
    for number in range(turns):
        turn = drive.ask(request([number + 1], max_tokens=3000, number=number + 1))
        until(drive, turn, TurnState.DECODING)
    return drive


def _steps(drive: Drive, rounds: int) -> list[StepPlan]:
    before = len(drive.plans)
    for _ in range(rounds):
        drive.advance()
    return [plan.step for plan in drive.plans[before:] if plan.step is not None]


@pytest.mark.parametrize("in_flight", [1, 2])
def test_while_everybody_decodes_a_step_is_the_one_before_once_more(in_flight: int) -> None:
    drive = _decoding(in_flight=in_flight)
    _steps(drive, 3)
    steps = _steps(drive, 20)
    assert all(one.decode is other.decode for one, other in pairwise(steps))
    assert [other.number - one.number for one, other in pairwise(steps)] == [1] * (len(steps) - 1)


def test_who_comes_while_others_decode_is_looked_at_at_once() -> None:
    drive = _decoding(batch=3)
    _steps(drive, 5)
    drive.ask(request([9], max_tokens=1, number=3))
    assert drive.round().start


def test_who_is_cancelled_while_others_decode_is_in_no_further_step() -> None:
    drive = _decoding()
    _steps(drive, 5)
    one, other = drive.planner.turns.values()
    drive.planner.cancel(one.number)
    assert {step.decode for step in _steps(drive, 6)} == {(other.live.number,)}


def test_who_waits_for_too_long_while_others_decode_is_refused_then() -> None:
    drive = _decoding(batch=2)
    drive.ask(request([9], max_tokens=1, number=3, deadline=drive.now + 5))
    _steps(drive, 5)
    drive.now += 6
    drive.round()
    assert len(drive.told[3].ended) == 1


@given(
    spec=cache_specs,
    in_flight=st.integers(1, 2),
    blocks=st.integers(2, 20),
    wanted=st.lists(st.integers(1, 700), min_size=1, max_size=4),
    start=st.integers(1, SEGMENT_ROWS),
    what=st.lists(st.sampled_from(["go on", "ask", "cancel", "rest", "wait"]), max_size=12),
)
def test_doing_a_step_once_more_is_what_thinking_about_it_would_have_come_to(
    spec: CacheSpec, in_flight: int, blocks: int, wanted: list[int], start: int, what: list[str]
) -> None:
    def plans(thinking: bool) -> list[Plan]:
        drive = drive_of(spec, blocks, batch=3, in_flight=in_flight, reserve=60, context=2500)
        drive.end_rate = 100
        longest = min(drive.planner.hot.capacity, 2500) - 1
        for number, tokens in enumerate(wanted, 1):
            ids = [number, *range(start + 1)][:longest]
            drive.ask(request(ids, number=number, max_tokens=tokens), (tokens // 2, 1))
        for one in [*what, "go on"]:
            _disturb(drive, one)
            for _ in range(60):
                if thinking:
                    drive.planner._flights.steady = None
                drive.advance()
        return drive.plans

    assert plans(thinking=False) == plans(thinking=True)


def _disturb(drive: Drive, what: str) -> None:
    if what == "ask":
        deadline = drive.now + 10
        drive.ask(request([5], number=len(drive.told) + 1, max_tokens=9, deadline=deadline))
    elif what == "cancel" and drive.planner.turns:
        drive.planner.cancel(min(drive.planner.turns))
        drive.tell()
    elif what == "rest":
        drive.planner.hot.drop_resting()
    elif what == "wait":
        drive.now += 6


@pytest.mark.parametrize("damage", ["members", "sequence", "decode", "state", "left"])
def test_going_on_with_something_else_than_what_runs_is_noticed(damage: str) -> None:
    drive = _decoding()
    _steps(drive, 3)
    steady = drive.planner._flights.steady
    assert steady is not None
    (turn, one), (other, another) = steady.members
    drive.planner.check_integrity()
    if damage == "members":
        steady.members = ((turn, one),)
    elif damage == "sequence":
        steady.members = ((turn, another), (other, one))
    elif damage == "decode":
        steady.decode = steady.decode[::-1]
    elif damage == "state":
        turn.state = TurnState.PREFILLING
    else:
        steady.left = 3000
    with pytest.raises(IntegrityError):
        drive.planner.check_integrity()
