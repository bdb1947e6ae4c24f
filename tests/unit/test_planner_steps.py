"""The planner: what runs in a step."""

from itertools import pairwise

import pytest

from agentcache.domain.plan import StepPlan
from agentcache.domain.request import Sampling
from agentcache.domain.spec import CacheSpec
from agentcache.domain.turn import SEGMENT_ROWS, Turn, TurnState
from tests.unit.domain_strategies import FULL, STATE, WINDOW
from tests.unit.simulated_driver import (
    Drive,
    chunks,
    drive_of,
    prefilled,
    request,
    until,
)


def test_prefill_goes_in_large_chunks_when_alone() -> None:
    drive = drive_of(chunk=40, busy_chunk=7)
    drive.ask(request([1] * 100, max_tokens=1))
    drive.run()
    assert chunks(drive) == [40, 40, 20]


@pytest.mark.parametrize("in_flight", [1, 2])
def test_prefill_goes_in_small_chunks_beside_decode(in_flight: int) -> None:
    drive = drive_of(chunk=40, busy_chunk=7, in_flight=in_flight)
    first = drive.ask(request([1], max_tokens=50))
    until(drive, first, TurnState.DECODING)
    drive.ask(request([2] * 20, max_tokens=1))
    drive.run()
    assert chunks(drive) == [1, 7, 7, 6]


def _cost(step: StepPlan) -> float:
    """A millisecond a prompt token, 40 for the tokens of those who decode."""
    return 0.001 * sum(len(chunk.ids) for chunk in step.prefill) + 0.04 * bool(step.decode)


def _streaming(drive: Drive) -> Turn:
    """A turn that has been decoding for long enough that what this costs is known."""
    drive.seconds_of = _cost
    stream = drive.ask(request([1] * 30, max_tokens=500))
    until(drive, stream, TurnState.DECODING)
    for _ in range(8):
        drive.advance()
    return stream


@pytest.mark.parametrize("spec", [FULL, WINDOW, STATE])
@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_running_stream_waits_for_one_chunk_of_a_long_prefill_at_most(
    spec: CacheSpec, in_flight: int
) -> None:
    drive = drive_of(spec, in_flight=in_flight, busy_chunk=512, step_seconds=0.1)
    stream = _streaming(drive)
    before = len(drive.plans)
    long = drive.ask(request([2, 3] * 2000, max_tokens=9))
    until(drive, long, TurnState.DECODING)
    steps = [plan.step for plan in drive.plans[before:] if plan.step is not None]
    assert sum(len(chunk.ids) for step in steps for chunk in step.prefill) == 4000
    waits = [0]
    for step in steps:
        assert _cost(step) <= 0.1
        waits[-1] += len(step.prefill)
        if stream.live.number in step.decode:
            waits.append(0)
    assert max(waits) == 1


@pytest.mark.parametrize(
    ("step_seconds", "together"), [(0.105, [20, 20]), (0.08, [20]), (9, [20] * 3)]
)
def test_short_prompts_share_a_step_as_far_as_the_time_of_those_who_decode_allows(
    step_seconds: float, together: list[int]
) -> None:
    drive = drive_of(batch=4, busy_chunk=64, step_seconds=step_seconds)
    stream = _streaming(drive)
    before = len(drive.plans)
    turns = [drive.ask(request([number] * 20, max_tokens=2)) for number in (2, 3, 4)]
    for turn in turns:
        until(drive, turn, TurnState.DECODING)
    steps = [plan.step for plan in drive.plans[before:] if plan.step is not None]
    first = next(step for step in steps if step.prefill)
    assert [len(chunk.ids) for chunk in first.prefill] == together
    assert stream.live.number in first.decode
    assert all(chunk.sampling is not None for chunk in first.prefill)


def test_a_prompt_that_does_not_wholly_fit_beside_another_waits_for_a_step_of_its_own() -> None:
    drive = drive_of(chunk=50)
    drive.seconds_of = _cost
    drive.ask(request([9] * 5, max_tokens=1))
    drive.run()  # what a chunk costs is known by then
    before = len(drive.plans)
    for number in (2, 3, 4):
        drive.ask(request([number] * 20, max_tokens=1))
    drive.run()
    steps = [plan.step for plan in drive.plans[before:] if plan.step is not None]
    assert [[len(chunk.ids) for chunk in step.prefill] for step in steps if step.prefill] == [
        [20, 20],
        [20],
    ]


def test_the_last_chunk_samples_and_the_others_do_not() -> None:
    drive = drive_of(chunk=2)
    sampling = Sampling(temperature=0.5)
    drive.ask(request([1, 2, 3], sampling=sampling, max_tokens=1))
    drive.run()
    steps = [plan.step for plan in drive.plans if plan.step is not None]
    assert [chunk.sampling for step in steps for chunk in step.prefill] == [None, sampling]


def test_the_shortest_prefill_goes_first() -> None:
    drive = drive_of(chunk=10)
    for length in (30, 20, 10):
        drive.ask(request([length] * length, max_tokens=1))
    drive.run()
    assert prefilled(drive) == [3, 2, 2, 1, 1, 1]


def test_the_oldest_prefill_is_not_starved_by_shorter_ones() -> None:
    drive = drive_of(chunk=10, busy_chunk=10, batch=3)
    old = drive.ask(request([1] * 100, max_tokens=1))
    for number in range(40):
        drive.ask(request([2, number + 3], max_tokens=1))
    until(drive, old, TurnState.PARKING)
    order = prefilled(drive)
    first = old.live.number
    assert order.count(first) == 10
    gaps = [at for at, one in enumerate(order) if one == first]
    assert all(later - sooner <= 5 for sooner, later in pairwise([-1, *gaps]))


def test_all_that_can_decode_do_so_in_one_step() -> None:
    drive = drive_of()
    turns = [drive.ask(request([number + 1], max_tokens=9)) for number in range(3)]
    for turn in turns:
        until(drive, turn, TurnState.DECODING)
    step = drive.round().step
    assert step is not None
    assert sorted(step.decode) == sorted(turn.live.number for turn in turns)


def test_no_more_steps_are_planned_than_may_be_in_flight() -> None:
    drive = drive_of(in_flight=2)
    drive.ask(request([1], max_tokens=9))
    steps = [drive.round().step for _ in range(4)]
    assert [step is not None for step in steps] == [False, True, True, False]
    assert drive.planner.flying == 2


def test_two_steps_in_flight_never_ask_for_more_tokens_than_were_wanted() -> None:
    drive = drive_of(in_flight=2)
    drive.ask(request([1], max_tokens=3))
    drive.run()
    assert len(drive.told[1].tokens) == 3
    assert drive.told[1].forwarded == 1 + 2


@pytest.mark.parametrize("spec", [STATE, WINDOW])
def test_state_is_never_run_past_a_token_that_may_be_the_last(spec: CacheSpec) -> None:
    drive = drive_of(spec, in_flight=2)
    drive.ask(request([1], "ada", max_tokens=20), stop=(4, 4))
    drive.run()
    assert drive.told[1].forwarded == 1 + 3
    said = drive.told[1].tokens
    drive.ask(request([1, *said, 5], "ada", max_tokens=1))
    drive.run()
    assert drive.told[2].placed[0].cached == 4


def test_state_past_a_stop_sequence_is_not_kept_as_if_it_ended_there() -> None:
    drive = drive_of(STATE)
    drive.ask(request([1, 2, 3], "ada", body=2, max_tokens=20), stop=(4, 1))
    drive.run()
    said = drive.told[1].tokens[:1]
    drive.ask(request([1, 2, 3, *said, 5, 6], "ada", body=5, max_tokens=1))
    drive.run()
    assert drive.told[2].placed[0].cached == 2


@pytest.mark.parametrize("spec", [FULL, WINDOW, STATE])
def test_a_turn_on_rows_in_doubt_goes_on_past_every_cut_and_keeps_nothing(spec: CacheSpec) -> None:
    drive = drive_of(spec)
    turn = drive.ask(request([1], max_tokens=SEGMENT_ROWS + 100))
    until(drive, turn, TurnState.DECODING)
    turn.live.sound = False
    drive.run()
    assert len(drive.told[1].tokens) == SEGMENT_ROWS + 100
    assert not len(drive.planner.lineage)
