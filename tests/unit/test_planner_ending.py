"""The planner: how turns end, well or not, and its own integrity."""

import pytest

from agentcache.domain.errors import (
    IntegrityError,
    TurnCancelled,
    Unavailable,
)
from agentcache.domain.notices import Limits, Stuck
from agentcache.domain.plan import Plan, SequenceFailed, StepResult
from agentcache.domain.request import Finish, Tier
from agentcache.domain.tokens import tokens
from agentcache.domain.turn import TurnState
from tests.unit.domain_strategies import FULL
from tests.unit.simulated_driver import (
    Drive,
    drive_of,
    planner_of,
    prefilled,
    request,
    until,
)


def test_a_cancelled_turn_that_waits_is_refused() -> None:
    drive = drive_of(batch=1)
    drive.ask(request([1]))
    waiting = drive.ask(request([2]))
    drive.round()
    drive.planner.cancel(waiting.number)
    drive.tell()
    assert isinstance(drive.told[2].ended[0], TurnCancelled)
    drive.planner.cancel(waiting.number)
    drive.tell()
    assert len(drive.told[2].ended) == 1


@pytest.mark.parametrize("in_flight", [1, 2])
def test_what_a_cancelled_turn_has_computed_is_kept_flying_steps_too(in_flight: int) -> None:
    drive = drive_of(chunk=30, in_flight=in_flight)
    turn = drive.ask(request([1 + n % 50 for n in range(100)]))
    drive.round()
    for _ in range(in_flight):
        drive.round()
    drive.planner.cancel(turn.number)
    drive.run()
    assert drive.told[1].ended == [Finish.CANCELLED]
    assert drive.told[1].forwarded == 30 * in_flight
    drive.ask(request([1 + n % 50 for n in range(100)], max_tokens=1))
    drive.run()
    assert drive.told[2].placed[0].cached == 30 * in_flight


def test_a_turn_that_is_cancelled_while_its_rows_are_fetched_ends_when_they_are() -> None:
    drive = drive_of()
    drive.ask(request([1, 2, 3], max_tokens=1))
    drive.run()
    turn = drive.ask(request([1, 2, 3, 4]))
    drive.round()
    drive.planner.cancel(turn.number)
    drive.round()
    assert not drive.told[2].ended
    drive.fetch(turn.number)
    assert isinstance(drive.told[2].ended[0], TurnCancelled)
    assert not drive.told[2].placed
    drive.round()
    assert list(drive.live) == [1]
    assert drive.planner.lineage.coldest(Tier.WARM) is not None, "its lease is released"


def test_a_turn_that_is_cut_off_while_its_rows_are_fetched_is_told_why() -> None:
    drive = drive_of()
    drive.ask(request([1, 2, 3], max_tokens=1))
    drive.run()
    turn = drive.ask(request([1, 2, 3, 4]))
    drive.round()
    assert turn.state is TurnState.FETCHING
    draining = Unavailable("draining")
    drive.planner.cancel(turn.number, draining)
    drive.fetch(turn.number)
    assert drive.told[2].ended == [draining]


def test_the_models_end_token_ends_a_turn_and_is_told_as_no_text() -> None:
    drive = Drive(planner_of(FULL, 4), end_rate=1)
    drive.ask(request([1, 2]))
    drive.run()
    assert drive.told[1].tokens == [0]
    assert drive.told[1].ended == [Finish.STOP]


def test_only_what_was_said_is_remembered_after_a_stop_sequence() -> None:
    drive = drive_of()
    drive.ask(request([1, 2], "ada", max_tokens=20), stop=(5, 2))
    drive.run()
    assert drive.told[1].ended == [Finish.STOP]
    assert len(drive.told[1].tokens) == 5
    resting = drive.planner.hot.resting(drive.told[1].owner)
    assert resting is not None
    assert list(resting.ids) == [1, 2, *drive.told[1].tokens[:2]]


def test_a_turn_that_fails_fails_alone_and_its_rows_are_kept() -> None:
    drive = drive_of()
    first = drive.ask(request([1, 2], "ada", max_tokens=9))
    drive.ask(request([3, 4], "bob", max_tokens=9))
    until(drive, first, TurnState.DECODING)
    number = first.live.number
    drive.round(lambda sequence: sequence == number)
    drive.collect()
    drive.run()
    assert [drive.told[n].ended for n in (1, 2)] == [[Finish.FAILED], [Finish.LENGTH]]
    assert first.problem == "broken"
    assert drive.planner.hot.resting(drive.told[1].owner) is None
    assert drive.planner.lineage.match(first.request.root, tokens([1, 2])).length == 2


def test_a_sequence_that_cannot_be_started_is_in_no_step() -> None:
    drive = drive_of()
    drive.ask(request([1], max_tokens=1))
    drive.ask(request([2], max_tokens=1))
    plan = drive.round(lambda sequence: sequence == 1)
    assert (len(plan.start), plan.step) == (2, None)
    drive.run()
    assert [drive.told[n].ended for n in (1, 2)] == [[Finish.FAILED], [Finish.LENGTH]]
    assert 1 not in prefilled(drive)


def test_a_fetch_that_could_not_be_started_releases_its_lease() -> None:
    drive = drive_of()
    drive.ask(request([1, 2, 3], max_tokens=1))
    drive.run()
    drive.ask(request([1, 2, 3, 4]))
    drive.round(lambda sequence: sequence == 2)
    drive.run()
    assert drive.told[2].ended == [Finish.FAILED]
    assert drive.planner.lineage.coldest(Tier.WARM) is not None


def test_finishing_a_turn_that_was_cancelled_changes_nothing() -> None:
    drive = drive_of()
    turn = drive.ask(request([1], max_tokens=9))
    until(drive, turn, TurnState.DECODING)
    drive.planner.cancel(turn.number)
    drive.planner.finish(turn.number, Finish.STOP, 0)
    drive.run()
    assert drive.told[1].ended == [Finish.CANCELLED]


def test_a_finish_without_a_number_keeps_all_that_was_sampled() -> None:
    drive = drive_of()
    turn = drive.ask(request([1], "ada", max_tokens=9))
    until(drive, turn, TurnState.DECODING)
    drive.planner.finish(turn.number, Finish.STOP)
    assert turn.live.rows == 1
    assert len(turn.live.ids) == 2


def test_results_are_taken_in_the_order_of_the_steps() -> None:
    drive = drive_of(in_flight=2)
    drive.ask(request([1], max_tokens=9))
    for _ in range(3):
        drive.round()
    with pytest.raises(AssertionError, match="came before"):
        drive.planner.apply(StepResult(2))


def test_a_step_that_fails_after_the_turn_has_ended_does_not_change_how_it_ended() -> None:
    drive = drive_of(in_flight=2)
    turn = drive.ask(request([1], max_tokens=9))
    for _ in range(3):
        drive.round()
    drive.planner.cancel(turn.number)
    for step, _ in drive.flying:
        failed = (SequenceFailed(turn.live.number, "broken"),)
        drive.planner.apply(StepResult(step.number, failed=failed))
    assert (turn.finish, turn.live.rows) == (Finish.CANCELLED, 0)


def test_a_turn_whose_grammar_leads_nowhere_ends_by_length_with_what_it_said() -> None:
    drive = drive_of()
    turn = drive.ask(request([1], max_tokens=9))
    for _ in range(3):
        drive.round()
    drive.collect()
    rows = turn.live.rows
    assert (len(turn.sampled), rows) == (1, 1)
    step = drive.planner.plan(0.0).step
    assert step is not None
    failed = (SequenceFailed(turn.live.number, "no token fits", stuck=True),)
    drive.planner.apply(StepResult(step.number, failed=failed))
    assert (turn.finish, turn.problem, turn.live.rows) == (Finish.LENGTH, None, rows)
    assert Stuck(turn.number) in drive.planner.take_notices()


def test_a_plan_with_nothing_in_it_is_idle() -> None:
    drive = drive_of()
    assert drive.round().idle
    drive.ask(request([1], max_tokens=1))
    assert not drive.round().idle
    assert not Plan(drop=(1,)).idle


@pytest.mark.parametrize(
    "damage", ["lost", "twice", "pairs", "flying", "batch", "in flight", "not live"]
)
def test_damage_is_noticed(damage: str) -> None:
    drive = drive_of(batch=2, in_flight=2)
    planner = drive.planner
    turn = drive.ask(request([1]))
    drive.ask(request([2]))
    for _ in range(3):
        drive.round()
    assert (planner.running, planner.flying) == (2, 2)
    if damage == "lost":
        planner.turns.clear()
    elif damage == "twice":
        turn.state = TurnState.QUEUED
        planner._queue.push(turn)
    elif damage == "pairs":
        planner.hot.make(b"r", tokens([1]), 1)
    elif damage == "flying":
        turn.live.flying = 7
    elif damage == "batch":
        planner.limits = Limits(batch=1, in_flight=2)
    elif damage == "in flight":
        planner.limits = Limits(batch=2, in_flight=1)
    else:
        planner.hot.drop(turn.live)
    with pytest.raises(IntegrityError):
        planner.check_integrity()
