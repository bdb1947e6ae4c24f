"""The planner: who gets a place, with which rows, and what runs next."""

import math
from itertools import pairwise

import pytest

from agentcache.domain.errors import (
    IntegrityError,
    InvalidRequest,
    Overloaded,
    PromptTooLong,
    TurnCancelled,
    Unavailable,
)
from agentcache.domain.notices import Limits
from agentcache.domain.plan import Plan, SequenceFailed, StepResult
from agentcache.domain.pool import BLOCK_TOKENS
from agentcache.domain.request import Finish, Identity, Miss, Sampling, Tier, TurnRequest
from agentcache.domain.spec import CacheSpec
from agentcache.domain.tokens import tokens
from agentcache.domain.turn import SEGMENT_ROWS, Turn, TurnState
from tests.unit.domain_strategies import FULL, STATE, WINDOW
from tests.unit.simulated_driver import Drive, planner_of, request

SYSTEM = [7] * 100


def _drive(spec: CacheSpec = FULL, blocks: int = 40, **limits: int) -> Drive:
    return Drive(planner_of(spec, blocks, Limits(**limits)))


def _chunks(drive: Drive) -> list[int]:
    """The lengths of all prefill chunks so far."""
    steps = [plan.step for plan in drive.plans if plan.step is not None]
    return [len(chunk.ids) for step in steps for chunk in step.prefill]


def _prefilled(drive: Drive) -> list[int]:
    """The sequences of all prefill chunks so far."""
    steps = [plan.step for plan in drive.plans if plan.step is not None]
    return [chunk.sequence for step in steps for chunk in step.prefill]


def _until(drive: Drive, turn: Turn, state: TurnState) -> None:
    for _ in range(5000):
        if turn.state is state:
            return
        drive.advance()
    raise AssertionError(f"turn {turn.number} never came to be {state.value}")


# -- what is refused -----------------------------------------------------------------------------


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="empty") as refusal:
        _drive().ask(request([]))
    assert refusal.value.param == "messages"


@pytest.mark.parametrize(("blocks", "context", "limit"), [(1, 9999, 255), (8, 50, 49)])
def test_a_prompt_that_leaves_no_room_for_an_answer_is_too_long(
    blocks: int, context: int, limit: int
) -> None:
    drive = _drive(blocks=blocks, context=context)
    with pytest.raises(PromptTooLong) as refusal:
        drive.ask(request([1] * (limit + 1)))
    assert (refusal.value.tokens, refusal.value.limit) == (limit + 1, limit)
    assert refusal.value.param == "messages"
    drive.ask(request([1] * limit))
    drive.run()
    assert drive.told[1].ended == [Finish.LENGTH]


def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    drive = _drive(queue=2, batch=1)
    for _ in range(2):
        drive.ask(request([1]))
    with pytest.raises(Overloaded, match="2 turns are waiting") as refusal:
        drive.ask(request([1]))
    assert refusal.value.retry_after == 2.0


def test_the_time_to_come_back_follows_how_long_turns_take() -> None:
    drive = _drive(queue=1, batch=1)
    drive.ask(request([1], max_tokens=1))
    drive.round()
    drive.now = 1000.0
    drive.run()
    drive.ask(request([1], max_tokens=1))
    with pytest.raises(Overloaded) as refusal:
        drive.ask(request([1]))
    assert refusal.value.retry_after == 60.0


def test_a_turn_that_waits_past_its_deadline_is_refused() -> None:
    drive = _drive(batch=1)
    drive.ask(request([1], max_tokens=3))
    drive.ask(request([1, 2], deadline=5.0))
    drive.round()
    assert drive.planner.next_deadline() == 5.0
    drive.now = 5.0
    drive.round()
    (refusal,) = drive.told[2].ended
    assert isinstance(refusal, Overloaded)
    assert "5 s" in str(refusal)
    assert drive.planner.next_deadline() is None
    assert drive.planner.waiting == 0


def test_a_turn_that_had_its_place_is_not_refused_for_its_deadline_nor_when_draining() -> None:
    drive = _drive(blocks=6, reserve=1)
    drive.ask(request([1] * 700, max_tokens=200))
    young = drive.ask(request([2] * 500, max_tokens=200, deadline=1.0))
    for _ in range(3000):
        drive.advance()
        if young.state is TurnState.QUEUED:
            break
    assert young.admitted
    drive.now = 2.0
    drive.ask(request([3]))
    assert drive.planner.next_deadline() == math.inf
    drive.planner.refuse_waiting(Unavailable("draining"))
    drive.run()
    assert drive.told[2].ended == [Finish.LENGTH]
    assert isinstance(drive.told[3].ended[0], Unavailable)


@pytest.mark.parametrize("limit", ["batch", "chunk", "busy_chunk", "reserve", "in_flight"])
def test_limits_that_would_let_nothing_go_on_are_refused(limit: str) -> None:
    with pytest.raises(ValueError, match=limit):
        Limits(**{limit: 0})


# -- who is next ---------------------------------------------------------------------------------


def test_tenants_are_served_in_turn() -> None:
    drive = _drive(batch=1)
    for number, tenant in enumerate("aaab", 1):
        drive.ask(request([number], tenant=tenant, max_tokens=1))
    drive.run()
    started = [start.turn for plan in drive.plans for start in plan.start]
    assert started == [1, 4, 2, 3]


def test_no_more_turns_than_the_batch_have_a_place() -> None:
    drive = _drive(batch=2)
    for number in range(3):
        drive.ask(request([number + 1]))
    drive.round()
    assert (drive.planner.running, drive.planner.waiting) == (2, 1)


def test_an_exclusive_agents_turns_go_one_after_another() -> None:
    drive = _drive()
    first = drive.ask(request([1], "ada", max_tokens=3))
    second = drive.ask(request([2], "ada", max_tokens=3))
    other = drive.ask(request([3], "bob", max_tokens=3))
    drive.round()
    assert [turn.sequence is not None for turn in (first, second, other)] == [True, False, True]
    drive.run()
    assert [len(one.ended) for one in drive.told.values()] == [1, 1, 1]


def test_an_agents_second_turn_does_not_overtake_its_first_that_waits_for_a_prefix() -> None:
    drive = _drive(chunk=10)
    drive.ask(request([*SYSTEM, 1], shared=100, max_tokens=5))
    first = drive.ask(request([*SYSTEM, 2], "ada", shared=100, max_tokens=5))
    second = drive.ask(request([9], "ada", max_tokens=5))
    drive.round()
    assert (first.state, second.state) == (TurnState.QUEUED, TurnState.QUEUED)
    drive.run()
    started = [start.turn for plan in drive.plans for start in plan.start]
    assert started == [1, 2, 3]


def test_two_agents_of_one_name_in_different_tenants_do_not_wait_for_each_other() -> None:
    drive = _drive()
    drive.ask(request([1], "ada", tenant="a"))
    drive.ask(request([1], "ada", tenant="b"))
    drive.round()
    assert drive.planner.running == 2


def test_names_that_are_only_hints_run_at_once() -> None:
    drive = _drive()
    asked = request([1], "ada")
    hint = Identity("ada")
    for _ in range(2):
        drive.ask(TurnRequest("x", hint, asked.root, asked.prompt))
    drive.round()
    assert drive.planner.running == 2


def test_who_could_restore_what_another_just_computes_waits_for_it() -> None:
    drive = _drive(chunk=30)
    drive.ask(request([*SYSTEM, 1], shared=100, max_tokens=2))
    waiting = drive.ask(request([*SYSTEM, 2], shared=100, max_tokens=2))
    passing = drive.ask(request([5], max_tokens=2))
    drive.round()
    assert (waiting.state, passing.state) == (TurnState.QUEUED, TurnState.READY)
    drive.run()
    assert drive.told[2].placed[0].cached == 100
    assert drive.told[2].placed[0].tier is Tier.WARM
    assert sum(one.forwarded for one in drive.told.values()) == 101 + 1 + 1 + 3


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_prefix_that_is_computed_is_there_for_others_before_the_turn_ends(in_flight: int) -> None:
    drive = _drive(chunk=30, in_flight=in_flight)
    first = drive.ask(request([*SYSTEM, 1], shared=100, max_tokens=500))
    second = drive.ask(request([*SYSTEM, 2], shared=100))
    _until(drive, second, TurnState.DECODING)
    assert drive.told[2].placed[0].cached == 100
    assert first.finish is None
    assert len(first.sampled) < 10


def test_nobody_waits_for_a_prefix_that_is_restored_and_not_computed() -> None:
    drive = _drive()
    drive.ask(request([*SYSTEM, 1], shared=100, max_tokens=1))
    drive.run()
    for tail in (2, 3):
        drive.ask(request([*SYSTEM, tail], shared=100))
    assert [start.restore for start in drive.round().start] == [100, 100]


@pytest.mark.parametrize(
    ("length", "store", "waits"), [(64, True, True), (63, True, False), (100, False, False)]
)
def test_only_a_prefix_that_is_worth_it_and_is_kept_is_waited_for(
    length: int, store: bool, waits: bool
) -> None:
    drive = _drive(chunk=10)
    prefix = SYSTEM[:length]
    drive.ask(request([*prefix, 1], shared=length, store=store))
    second = drive.ask(request([*prefix, 2], shared=length))
    drive.round()
    assert (second.state is TurnState.QUEUED) == waits


@pytest.mark.parametrize("in_flight", [1, 2])
def test_nobody_waits_for_the_prefix_of_a_turn_that_was_stopped(in_flight: int) -> None:
    drive = _drive(chunk=10, in_flight=in_flight)
    first = drive.ask(request([*SYSTEM, 1], shared=100))
    second = drive.ask(request([*SYSTEM, 2], shared=100))
    for _ in range(in_flight):
        drive.round()
    drive.planner.cancel(first.number)
    assert (drive.round().start != ()) == (in_flight == 2), "its row is still under way"
    _until(drive, second, TurnState.DECODING)
    assert drive.told[1].ended == [Finish.CANCELLED]


def test_nobody_waits_for_another_tenants_prefix() -> None:
    drive = _drive(chunk=10)
    drive.ask(request([*SYSTEM, 1], shared=100, tenant="a"))
    drive.ask(request([*SYSTEM, 2], shared=100, tenant="b"))
    drive.round()
    assert drive.planner.running == 2


# -- which rows a turn goes on from --------------------------------------------------------------


def _second_turn(drive: Drive, ids: list[int], asked: list[int], **more: int) -> Turn:
    """Ada's second turn, on `asked`, after one on `ids` that said two tokens."""
    drive.ask(request(ids, "ada", max_tokens=2))
    drive.run()
    turn = drive.ask(request(asked, "ada", max_tokens=2, **more))  # type: ignore[arg-type]
    drive.run()
    return turn


def test_a_turn_takes_over_the_sequence_that_its_session_left() -> None:
    drive = _drive()
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
    drive = _drive()
    _second_turn(drive, [1, 2, 3, 4], [1, 2, 8, 9])
    admitted = drive.told[2].placed[0]
    assert (admitted.cached, admitted.tier) == (2, Tier.HOT)
    third = drive.ask(request([1, 2, 3, 4, 5], "ada", max_tokens=1))
    drive.run()
    assert drive.told[third.number].placed[0].cached == 4, "the first way is still in the lineage"


def test_the_same_prompt_again_runs_its_last_token_only() -> None:
    drive = _drive()
    _second_turn(drive, [1, 2, 3], [1, 2, 3])
    assert drive.told[2].placed[0].cached == 2
    assert drive.told[1].tokens == drive.told[2].tokens


@pytest.mark.parametrize("spec", [STATE, WINDOW])
def test_state_is_taken_over_where_it_stands_or_not_at_all(spec: CacheSpec) -> None:
    drive = _drive(spec)
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
    drive = _drive()
    drive.ask(request([1, 2, 3, 4, 5, 6], "bob", max_tokens=1))
    drive.run()
    _second_turn(drive, [1, 2, 9], [1, 2, 3, 4, 5, 6, 7])
    admitted = drive.told[3].placed[0]
    assert (admitted.cached, admitted.tier) == (6, Tier.WARM)


def test_rows_that_are_only_on_disk_come_from_the_cold_tier() -> None:
    drive = _drive()
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
    drive = _drive()
    drive.ask(request([1, 2, 3], expected=2, max_tokens=1))
    drive.run()
    assert drive.told[1].placed[0].miss is Miss.EVICTED


def test_the_last_token_of_a_prompt_is_never_missed() -> None:
    drive = _drive()
    _second_turn(drive, [1, 2, 3], [1, 2, 3], expected=3)
    assert drive.told[2].placed[0].miss is Miss.NONE


def test_a_corrupt_segment_is_a_miss_and_the_turn_looks_again() -> None:
    drive = _drive()
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
    drive = _drive()
    drive.ask(request([1, 2, 3], max_tokens=1))
    drive.run()
    known = len(drive.planner.lineage)
    drive.ask(request([1, 2, 3, 4, 5], "ada", store=False, max_tokens=3))
    drive.run()
    assert drive.told[2].placed[0].cached == 3
    assert len(drive.planner.lineage) == known
    assert drive.planner.hot.resting(drive.told[2].owner) is None


# -- what runs next ------------------------------------------------------------------------------


def test_prefill_goes_in_large_chunks_when_alone() -> None:
    drive = _drive(chunk=40, busy_chunk=7)
    drive.ask(request([1] * 100, max_tokens=1))
    drive.run()
    assert _chunks(drive) == [40, 40, 20]


@pytest.mark.parametrize("in_flight", [1, 2])
def test_prefill_goes_in_small_chunks_beside_decode(in_flight: int) -> None:
    drive = _drive(chunk=40, busy_chunk=7, in_flight=in_flight)
    first = drive.ask(request([1], max_tokens=50))
    _until(drive, first, TurnState.DECODING)
    drive.ask(request([2] * 20, max_tokens=1))
    drive.run()
    assert _chunks(drive) == [1, 7, 7, 6]


def test_the_last_chunk_samples_and_the_others_do_not() -> None:
    drive = _drive(chunk=2)
    sampling = Sampling(temperature=0.5)
    drive.ask(request([1, 2, 3], sampling=sampling, max_tokens=1))
    drive.run()
    steps = [plan.step for plan in drive.plans if plan.step is not None]
    assert [chunk.sampling for step in steps for chunk in step.prefill] == [None, sampling]


def test_the_shortest_prefill_goes_first() -> None:
    drive = _drive(chunk=10)
    for length in (30, 20, 10):
        drive.ask(request([length] * length, max_tokens=1))
    drive.run()
    assert _prefilled(drive) == [3, 2, 2, 1, 1, 1]


def test_the_oldest_prefill_is_not_starved_by_shorter_ones() -> None:
    drive = _drive(chunk=10, busy_chunk=10, batch=3)
    old = drive.ask(request([1] * 100, max_tokens=1))
    for number in range(40):
        drive.ask(request([2, number + 3], max_tokens=1))
    _until(drive, old, TurnState.PARKING)
    order = _prefilled(drive)
    first = old.live.number
    assert order.count(first) == 10
    gaps = [at for at, one in enumerate(order) if one == first]
    assert all(later - sooner <= 5 for sooner, later in pairwise([-1, *gaps]))


def test_all_that_can_decode_do_so_in_one_step() -> None:
    drive = _drive()
    turns = [drive.ask(request([number + 1], max_tokens=9)) for number in range(3)]
    for turn in turns:
        _until(drive, turn, TurnState.DECODING)
    step = drive.round().step
    assert step is not None
    assert sorted(step.decode) == sorted(turn.live.number for turn in turns)


def test_no_more_steps_are_planned_than_may_be_in_flight() -> None:
    drive = _drive(in_flight=2)
    drive.ask(request([1], max_tokens=9))
    steps = [drive.round().step for _ in range(4)]
    assert [step is not None for step in steps] == [False, True, True, False]
    assert drive.planner.flying == 2


def test_two_steps_in_flight_never_ask_for_more_tokens_than_were_wanted() -> None:
    drive = _drive(in_flight=2)
    drive.ask(request([1], max_tokens=3))
    drive.run()
    assert len(drive.told[1].tokens) == 3
    assert drive.told[1].forwarded == 1 + 2


@pytest.mark.parametrize("spec", [STATE, WINDOW])
def test_state_is_never_run_past_a_token_that_may_be_the_last(spec: CacheSpec) -> None:
    drive = _drive(spec, in_flight=2)
    drive.ask(request([1], "ada", max_tokens=20), stop=(4, 4))
    drive.run()
    assert drive.told[1].forwarded == 1 + 3
    said = drive.told[1].tokens
    drive.ask(request([1, *said, 5], "ada", max_tokens=1))
    drive.run()
    assert drive.told[2].placed[0].cached == 4


def test_state_past_a_stop_sequence_is_not_kept_as_if_it_ended_there() -> None:
    drive = _drive(STATE)
    drive.ask(request([1, 2, 3], "ada", body=2, max_tokens=20), stop=(4, 1))
    drive.run()
    said = drive.told[1].tokens[:1]
    drive.ask(request([1, 2, 3, *said, 5, 6], "ada", body=5, max_tokens=1))
    drive.run()
    assert drive.told[2].placed[0].cached == 2


# -- memory --------------------------------------------------------------------------------------


def test_room_is_reserved_for_a_part_of_the_answer_and_grown_when_it_is_full() -> None:
    drive = _drive(reserve=10)
    drive.ask(request([1] * 250, max_tokens=300))
    plan = drive.round()
    assert plan.start[0].capacity == 2 * BLOCK_TOKENS
    drive.run()
    grows = [grow.capacity for plan in drive.plans for grow in plan.grow]
    assert grows == [3 * BLOCK_TOKENS]
    assert len(drive.told[1].tokens) == 300


def test_no_more_room_is_reserved_than_the_turn_may_fill() -> None:
    drive = _drive(reserve=512)
    drive.ask(request([1] * 250, max_tokens=6))
    assert drive.round().start[0].capacity == BLOCK_TOKENS


def _crowd(in_flight: int = 1, spec: CacheSpec = FULL) -> tuple[Drive, list[Turn]]:
    """Three turns that all fill a block of their own, and want another one of four."""
    drive = _drive(spec, blocks=4, reserve=1, in_flight=in_flight)
    asked = [request([n] * (250 - n), max_tokens=300) for n in (1, 2, 3)]
    return drive, [drive.ask(one) for one in asked]


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("spec", [FULL, WINDOW, STATE])
def test_preempted_turns_go_on_with_the_very_same_tokens(in_flight: int, spec: CacheSpec) -> None:
    crowded, turns = _crowd(in_flight, spec)
    crowded.run()
    assert max(crowded.told[turn.number].places for turn in turns) > 1
    for turn in turns:
        alone = _drive(spec)
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
    drive = _drive(blocks=2, reserve=1, in_flight=2)
    drive.ask(request([1] * 250, max_tokens=100))
    drive.ask(request([2] * 150, max_tokens=100))
    drive.run()
    assert [drive.told[n].places for n in (1, 2)] == [1, 2]
    assert [len(drive.told[n].tokens) for n in (1, 2)] == [100, 100]


def test_a_turn_whose_resting_sequence_cannot_grow_waits_for_room() -> None:
    drive = _drive(blocks=3, reserve=1)
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
    drive = _drive(blocks=2, reserve=1)
    drive.ask(request([1] * 250, max_tokens=200))
    short = drive.ask(request([2] * 250, max_tokens=5))  # ends in the step that fills the other
    drive.run()
    assert drive.told[1].places == drive.told[short.number].places == 1


def test_resting_sequences_give_way_before_anybody_is_preempted() -> None:
    drive = _drive(blocks=2, reserve=1)
    drive.ask(request([1] * 10, "ada", max_tokens=2))
    drive.run()
    assert drive.planner.hot.resting(drive.told[1].owner) is not None
    drive.ask(request([2] * 250, max_tokens=100))
    drive.run()
    assert drive.planner.hot.resting(drive.told[1].owner) is None
    assert drive.told[2].places == 1


def test_a_large_turn_is_not_passed_by_small_ones_for_ever() -> None:
    drive = _drive(blocks=4)
    drive.ask(request([1], max_tokens=200))
    large = drive.ask(request([2] * 1000, max_tokens=10))
    for number in range(30):
        drive.ask(request([3, number + 1], max_tokens=10))
    drive.run()
    started = [start.turn for plan in drive.plans for start in plan.start]
    assert started[:2] == [1, large.number]


# -- cuts ----------------------------------------------------------------------------------------


def _ends(drive: Drive) -> set[int]:
    lineage = drive.planner.lineage
    return {lineage[key].stop for key in drive.payloads}


def test_agents_that_share_a_prefix_cut_it_alike_and_store_it_once() -> None:
    drive = _drive(blocks=100)
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
    drive = _drive(spec, blocks=40, in_flight=in_flight)
    turn = drive.ask(request([1 + n % 50 for n in range(5000)], shared=100, body=4990))
    _until(drive, turn, TurnState.DECODING)
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


# -- ending --------------------------------------------------------------------------------------


def test_a_cancelled_turn_that_waits_is_refused() -> None:
    drive = _drive(batch=1)
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
    drive = _drive(chunk=30, in_flight=in_flight)
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
    drive = _drive()
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


def test_the_models_end_token_ends_a_turn_and_is_told_as_no_text() -> None:
    drive = Drive(planner_of(FULL, 4), end_rate=1)
    drive.ask(request([1, 2]))
    drive.run()
    assert drive.told[1].tokens == [0]
    assert drive.told[1].ended == [Finish.STOP]


def test_only_what_was_said_is_remembered_after_a_stop_sequence() -> None:
    drive = _drive()
    drive.ask(request([1, 2], "ada", max_tokens=20), stop=(5, 2))
    drive.run()
    assert drive.told[1].ended == [Finish.STOP]
    assert len(drive.told[1].tokens) == 5
    resting = drive.planner.hot.resting(drive.told[1].owner)
    assert resting is not None
    assert list(resting.ids) == [1, 2, *drive.told[1].tokens[:2]]


def test_a_turn_that_fails_fails_alone_and_its_rows_are_kept() -> None:
    drive = _drive()
    first = drive.ask(request([1, 2], "ada", max_tokens=9))
    drive.ask(request([3, 4], "bob", max_tokens=9))
    _until(drive, first, TurnState.DECODING)
    number = first.live.number
    drive.round(lambda sequence: sequence == number)
    drive.collect()
    drive.run()
    assert [drive.told[n].ended for n in (1, 2)] == [[Finish.FAILED], [Finish.LENGTH]]
    assert first.problem == "broken"
    assert drive.planner.hot.resting(drive.told[1].owner) is None
    assert drive.planner.lineage.match(first.request.root, tokens([1, 2])).length == 2


def test_a_sequence_that_cannot_be_started_is_in_no_step() -> None:
    drive = _drive()
    drive.ask(request([1], max_tokens=1))
    drive.ask(request([2], max_tokens=1))
    plan = drive.round(lambda sequence: sequence == 1)
    assert (len(plan.start), plan.step) == (2, None)
    drive.run()
    assert [drive.told[n].ended for n in (1, 2)] == [[Finish.FAILED], [Finish.LENGTH]]
    assert 1 not in _prefilled(drive)


def test_a_fetch_that_could_not_be_started_releases_its_lease() -> None:
    drive = _drive()
    drive.ask(request([1, 2, 3], max_tokens=1))
    drive.run()
    drive.ask(request([1, 2, 3, 4]))
    drive.round(lambda sequence: sequence == 2)
    drive.run()
    assert drive.told[2].ended == [Finish.FAILED]
    assert drive.planner.lineage.coldest(Tier.WARM) is not None


def test_finishing_a_turn_that_was_cancelled_changes_nothing() -> None:
    drive = _drive()
    turn = drive.ask(request([1], max_tokens=9))
    _until(drive, turn, TurnState.DECODING)
    drive.planner.cancel(turn.number)
    drive.planner.finish(turn.number, Finish.STOP, 0)
    drive.run()
    assert drive.told[1].ended == [Finish.CANCELLED]


def test_a_finish_without_a_number_keeps_all_that_was_sampled() -> None:
    drive = _drive()
    turn = drive.ask(request([1], "ada", max_tokens=9))
    _until(drive, turn, TurnState.DECODING)
    drive.planner.finish(turn.number, Finish.STOP)
    assert turn.live.rows == 1
    assert len(turn.live.ids) == 2


def test_results_are_taken_in_the_order_of_the_steps() -> None:
    drive = _drive(in_flight=2)
    drive.ask(request([1], max_tokens=9))
    for _ in range(3):
        drive.round()
    with pytest.raises(AssertionError, match="came before"):
        drive.planner.apply(StepResult(2))


def test_a_step_that_fails_after_the_turn_has_ended_does_not_change_how_it_ended() -> None:
    drive = _drive(in_flight=2)
    turn = drive.ask(request([1], max_tokens=9))
    for _ in range(3):
        drive.round()
    drive.planner.cancel(turn.number)
    for step, _ in drive.flying:
        failed = (SequenceFailed(turn.live.number, "broken"),)
        drive.planner.apply(StepResult(step.number, failed=failed))
    assert (turn.finish, turn.live.rows) == (Finish.CANCELLED, 0)


def test_a_plan_with_nothing_in_it_is_idle() -> None:
    drive = _drive()
    assert drive.round().idle
    drive.ask(request([1], max_tokens=1))
    assert not drive.round().idle
    assert not Plan(drop=(1,)).idle


@pytest.mark.parametrize(
    "damage", ["lost", "twice", "pairs", "flying", "batch", "in flight", "not live"]
)
def test_damage_is_noticed(damage: str) -> None:
    drive = _drive(batch=2, in_flight=2)
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
