"""The planner: which rows a turn goes on from, and which it leaves behind."""

import pytest

from agentcache.domain.request import Finish, Miss, Tier
from agentcache.domain.spec import CacheSpec
from agentcache.domain.turn import SEGMENT_ROWS, Turn, TurnState
from tests.unit.domain_strategies import FULL, STATE, WINDOW
from tests.unit.simulated_driver import (
    Drive,
    drive_of,
    request,
    until,
)

SYSTEM = [7] * 100


def _second_turn(drive: Drive, ids: list[int], asked: list[int], **more: int) -> Turn:
    """Ada's second turn, on `asked`, after one on `ids` that said two tokens."""
    drive.ask(request(ids, "ada", max_tokens=2))
    drive.run()
    turn = drive.ask(request(asked, "ada", max_tokens=2, **more))  # type: ignore[arg-type]
    drive.run()
    return turn


def test_a_turn_takes_over_the_sequence_that_its_session_left() -> None:
    drive = drive_of()
    drive.ask(request([1, 2, 3], "ada", max_tokens=2))
    drive.run()
    said = drive.told[1].tokens
    drive.ask(request([1, 2, 3, *said, 9], "ada", max_tokens=2))
    plan = drive.round()
    (resize,) = plan.resize
    assert (resize.length, plan.start, plan.step) == (4, (), None)
    drive.run()
    admitted = drive.told[2].placed[0]
    assert (admitted.cached, admitted.tier, admitted.miss) == (4, Tier.HOT, Miss.NONE)
    assert drive.told[2].forwarded == 2 + 1


def test_a_prompt_that_diverges_takes_over_as_much_as_agrees() -> None:
    drive = drive_of()
    _second_turn(drive, [1, 2, 3, 4], [1, 2, 8, 9])
    admitted = drive.told[2].placed[0]
    assert (admitted.cached, admitted.tier) == (2, Tier.HOT)
    third = drive.ask(request([1, 2, 3, 4, 5], "ada", max_tokens=1))
    drive.run()
    assert drive.told[third.number].placed[0].cached == 4, "the first way is still in the lineage"


def test_the_same_prompt_again_runs_its_last_token_only() -> None:
    drive = drive_of()
    _second_turn(drive, [1, 2, 3], [1, 2, 3])
    assert drive.told[2].placed[0].cached == 2
    assert drive.told[1].tokens == drive.told[2].tokens


@pytest.mark.parametrize("spec", [STATE, WINDOW])
def test_state_is_taken_over_where_it_stands_or_not_at_all(spec: CacheSpec) -> None:
    drive = drive_of(spec)
    drive.ask(request([1, 2, 3], "ada", body=2, max_tokens=2))
    drive.run()
    said = drive.told[1].tokens
    drive.ask(request([1, 2, 3, *said, 9], "ada", body=4, max_tokens=2))
    drive.run()
    assert (drive.told[2].placed[0].cached, drive.told[2].placed[0].tier) == (4, Tier.HOT)
    drive.ask(request([1, 2, 8, 8], "ada", body=2, max_tokens=2))
    drive.run()
    admitted = drive.told[3].placed[0]
    assert (admitted.cached, admitted.tier) == (2, Tier.WARM), "before the generation prompt"


def test_the_lineage_is_preferred_where_it_knows_more_than_what_rests() -> None:
    drive = drive_of()
    drive.ask(request([1, 2, 3, 4, 5, 6], "bob", max_tokens=1))
    drive.run()
    _second_turn(drive, [1, 2, 9], [1, 2, 3, 4, 5, 6, 7])
    admitted = drive.told[3].placed[0]
    assert (admitted.cached, admitted.tier) == (6, Tier.WARM)


def test_rows_that_are_only_on_disk_come_from_the_cold_tier() -> None:
    drive = drive_of()
    drive.ask(request([1, 2, 3], max_tokens=1))
    drive.run()
    lineage = drive.planner.lineage
    for key in drive.payloads:
        lineage.add(lineage[key], Tier.COLD)
        lineage.leave(key, Tier.WARM)
    drive.ask(request([1, 2, 3, 4], max_tokens=1))
    drive.run()
    admitted = drive.told[2].placed[0]
    assert (admitted.cached, admitted.tier) == (3, Tier.COLD)


def test_rows_that_should_be_there_and_are_not_were_evicted() -> None:
    drive = drive_of()
    drive.ask(request([1, 2, 3], expected=2, max_tokens=1))
    drive.run()
    assert drive.told[1].placed[0].miss is Miss.EVICTED


def test_the_last_token_of_a_prompt_is_never_missed() -> None:
    drive = drive_of()
    _second_turn(drive, [1, 2, 3], [1, 2, 3], expected=3)
    assert drive.told[2].placed[0].miss is Miss.NONE


def test_a_corrupt_segment_is_a_miss_and_the_turn_looks_again() -> None:
    drive = drive_of()
    drive.ask(request([*SYSTEM, 1], shared=100, max_tokens=1))
    drive.run()
    turn = drive.ask(request([*SYSTEM, 1, 2, 3], shared=100, max_tokens=1, expected=101))
    drive.round()
    assert turn.state is TurnState.FETCHING
    drive.fetch(turn.number, bad=1)
    drive.run()
    admitted = drive.told[2].placed[0]
    assert (admitted.cached, admitted.tier, admitted.miss) == (100, Tier.WARM, Miss.CORRUPT)
    assert drive.told[2].ended == [Finish.LENGTH]


def test_a_turn_that_stores_nothing_uses_what_is_there_and_leaves_nothing() -> None:
    drive = drive_of()
    drive.ask(request([1, 2, 3], max_tokens=1))
    drive.run()
    known = len(drive.planner.lineage)
    drive.ask(request([1, 2, 3, 4, 5], "ada", store=False, max_tokens=3))
    drive.run()
    assert drive.told[2].placed[0].cached == 3
    assert len(drive.planner.lineage) == known
    assert drive.planner.hot.resting(drive.told[2].owner) is None


def _ends(drive: Drive) -> set[int]:
    lineage = drive.planner.lineage
    return {lineage[key].stop for key in drive.payloads}


def test_agents_that_share_a_prefix_cut_it_alike_and_store_it_once() -> None:
    drive = drive_of(blocks=100)
    system = [1 + n % 50 for n in range(5000)]
    for name, length in (("ada", 1), ("bob", 3000)):
        drive.ask(request([*system, *[60] * length], name, shared=5000, max_tokens=1))
        drive.run()
    assert _ends(drive) == {2048, 4096, 5000, 5001, 7048, 8000}
    stored = sum(len(ids) for ids in drive.payloads.values())
    assert stored == 8000, "bob's first own token is ada's"


@pytest.mark.parametrize("spec", [FULL, WINDOW, STATE])
@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_long_prefill_is_kept_while_it_goes_on(spec: CacheSpec, in_flight: int) -> None:
    drive = drive_of(spec, blocks=40, in_flight=in_flight)
    turn = drive.ask(request([1 + n % 50 for n in range(5000)], shared=100, body=4990))
    until(drive, turn, TurnState.DECODING)
    regular = {100, 100 + SEGMENT_ROWS, 100 + 2 * SEGMENT_ROWS}
    assert _ends(drive) == regular | ({4990} if spec is not FULL else set())


def test_a_cut_is_where_the_prompt_says_whatever_was_cached() -> None:
    turn = Turn(1, request([1]), 0.0, 1, marks=(100, 3000))
    assert turn.cuts(0, 6000) == (100, 2148, 3000, 5048, 6000)
    assert turn.cuts(2500, 2600) == (2600,)
    assert turn.cuts(7, 7) == ()
    assert [turn.last_cut(0, stop) for stop in (99, 100, 2147, 2148, 3000)] == [
        0,
        100,
        100,
        2148,
        3000,
    ]
    assert turn.next_cut(2148) == 3000
