"""The planner: room, growth, and who gives way."""

import pytest

from agentcache.domain.pool import BLOCK_TOKENS
from agentcache.domain.request import Finish, Tier
from agentcache.domain.spec import CacheSpec
from agentcache.domain.turn import Turn, TurnState
from tests.unit.domain_strategies import FULL, STATE, WINDOW
from tests.unit.simulated_driver import (
    Drive,
    drive_of,
    request,
)


def test_room_is_reserved_for_a_part_of_the_answer_and_grown_when_it_is_full() -> None:
    drive = drive_of(reserve=10)
    drive.ask(request([1] * 250, max_tokens=300))
    plan = drive.round()
    assert plan.start[0].capacity == 2 * BLOCK_TOKENS
    drive.run()
    grows = [grow.capacity for plan in drive.plans for grow in plan.grow]
    assert grows == [3 * BLOCK_TOKENS]
    assert len(drive.told[1].tokens) == 300


def test_no_more_room_is_reserved_than_the_turn_may_fill() -> None:
    drive = drive_of(reserve=512)
    drive.ask(request([1] * 250, max_tokens=6))
    assert drive.round().start[0].capacity == BLOCK_TOKENS


def _crowd(in_flight: int = 1, spec: CacheSpec = FULL) -> tuple[Drive, list[Turn]]:
    """Three turns that all fill a block of their own, and want another one of four."""
    drive = drive_of(spec, blocks=4, reserve=1, in_flight=in_flight)
    asked = [request([n] * (250 - n), max_tokens=300) for n in (1, 2, 3)]
    return drive, [drive.ask(one) for one in asked]


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("spec", [FULL, WINDOW, STATE])
def test_preempted_turns_go_on_with_the_very_same_tokens(in_flight: int, spec: CacheSpec) -> None:
    crowded, turns = _crowd(in_flight, spec)
    crowded.run()
    assert max(crowded.told[turn.number].places for turn in turns) > 1
    for turn in turns:
        alone = drive_of(spec)
        alone.ask(turn.request)
        alone.run()
        assert crowded.told[turn.number].tokens == alone.told[1].tokens
        assert len(crowded.told[turn.number].placed) == 1


@pytest.mark.parametrize("in_flight", [1, 2])
def test_the_youngest_gives_way_first_and_the_oldest_never_does(in_flight: int) -> None:
    drive, turns = _crowd(in_flight)
    gave_way: list[int] = []
    while drive.advance():
        for turn in turns:
            waits = turn.state is TurnState.QUEUED and turn.admitted
            if waits and turn.number not in gave_way:
                gave_way.append(turn.number)
    assert gave_way[0] == 3
    assert 1 not in gave_way
    ended = [plan_park.turn for plan in drive.plans for plan_park in plan.park if plan_park.turn]
    assert ended == [1, 2, 3]


def test_a_turn_gives_way_when_its_steps_have_landed_and_the_older_one_waits_for_that() -> None:
    drive = drive_of(blocks=2, reserve=1, in_flight=2)
    drive.ask(request([1] * 250, max_tokens=100))
    drive.ask(request([2] * 150, max_tokens=100))
    drive.run()
    assert [drive.told[n].places for n in (1, 2)] == [1, 2]
    assert [len(drive.told[n].tokens) for n in (1, 2)] == [100, 100]


def test_a_turn_whose_resting_sequence_cannot_grow_waits_for_room() -> None:
    drive = drive_of(blocks=3, reserve=1)
    drive.ask(request([1, 2], "ada", max_tokens=1))
    drive.run()
    drive.ask(request([3] * 300, max_tokens=5))
    second = drive.ask(request([1, 2] + [4] * 400, "ada", max_tokens=1))
    drive.round()
    assert (second.state, drive.planner.running) == (TurnState.QUEUED, 1)
    drive.run()
    assert drive.told[2].ended == drive.told[3].ended == [Finish.LENGTH]
    assert drive.told[3].placed[0].tier is Tier.HOT


def test_a_preempted_turn_still_says_how_much_of_its_prompt_was_cached() -> None:
    drive, turns = _crowd()
    drive.run()
    assert [turn.cached for turn in turns] == [0, 0, 0]


def test_memory_that_a_turn_frees_by_ending_saves_another_from_giving_way() -> None:
    drive = drive_of(blocks=2, reserve=1)
    drive.ask(request([1] * 250, max_tokens=200))
    short = drive.ask(request([2] * 250, max_tokens=5))  # ends in the step that fills the other
    drive.run()
    assert drive.told[1].places == drive.told[short.number].places == 1


def test_resting_sequences_give_way_before_anybody_is_preempted() -> None:
    drive = drive_of(blocks=2, reserve=1)
    drive.ask(request([1] * 10, "ada", max_tokens=2))
    drive.run()
    assert drive.planner.hot.resting(drive.told[1].owner) is not None
    drive.ask(request([2] * 250, max_tokens=100))
    drive.run()
    assert drive.planner.hot.resting(drive.told[1].owner) is None
    assert drive.told[2].places == 1


def test_a_large_turn_is_not_passed_by_small_ones_for_ever() -> None:
    drive = drive_of(blocks=4)
    drive.ask(request([1], max_tokens=200))
    large = drive.ask(request([2] * 1000, max_tokens=10))
    for number in range(30):
        drive.ask(request([3, number + 1], max_tokens=10))
    drive.run()
    started = [start.turn for plan in drive.plans for start in plan.start]
    assert started[:2] == [1, large.number]
