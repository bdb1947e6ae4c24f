"""The planner: who is refused, who waits, and who is next."""

import math

import pytest
from attrs import define, field

from agentcache.domain.errors import (
    InvalidRequest,
    Overloaded,
    PromptTooLong,
    Unavailable,
)
from agentcache.domain.notices import Limits
from agentcache.domain.planner import Planner
from agentcache.domain.request import Finish, Identity, Tier, TurnRequest
from agentcache.domain.turn import Turn, TurnState
from tests.unit.simulated_driver import (
    Drive,
    chunks,
    drive_of,
    request,
    until,
)

SYSTEM = [7] * 100


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="empty") as refusal:
        drive_of().ask(request([]))
    assert refusal.value.param == "messages"


@pytest.mark.parametrize(("blocks", "context", "limit"), [(1, 9999, 255), (8, 50, 49)])
def test_a_prompt_that_leaves_no_room_for_an_answer_is_too_long(
    blocks: int, context: int, limit: int
) -> None:
    drive = drive_of(blocks=blocks, context=context)
    with pytest.raises(PromptTooLong) as refusal:
        drive.ask(request([1] * (limit + 1)))
    assert (refusal.value.tokens, refusal.value.limit) == (limit + 1, limit)
    assert refusal.value.param == "messages"
    drive.ask(request([1] * limit))
    drive.run()
    assert drive.told[1].ended == [Finish.LENGTH]


def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    drive = drive_of(queue=2, batch=1)
    for _ in range(2):
        drive.ask(request([1]))
    with pytest.raises(Overloaded, match="2 turns are waiting") as refusal:
        drive.ask(request([1]))
    assert refusal.value.retry_after == 2.0


def test_the_time_to_come_back_follows_how_long_turns_take() -> None:
    drive = drive_of(queue=1, batch=1)
    drive.ask(request([1], max_tokens=1))
    drive.round()
    drive.now = 1000.0
    drive.run()
    drive.ask(request([1], max_tokens=1))
    with pytest.raises(Overloaded) as refusal:
        drive.ask(request([1]))
    assert refusal.value.retry_after == 60.0


def test_a_turn_that_waits_past_its_deadline_is_refused() -> None:
    drive = drive_of(batch=1)
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


def test_a_turn_that_will_not_wait_is_served_if_it_need_not() -> None:
    drive = drive_of(batch=1)
    drive.now = 7.0
    drive.ask(request([1], deadline=7.0, max_tokens=1))
    drive.ask(request([2], deadline=7.0, max_tokens=1))
    drive.run()
    assert drive.told[1].ended == [Finish.LENGTH]
    assert isinstance(drive.told[2].ended[0], Overloaded)


def test_a_turn_that_had_its_place_is_not_refused_for_its_deadline_nor_when_draining() -> None:
    drive = drive_of(blocks=6, reserve=1)
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


def test_tenants_are_served_in_turn() -> None:
    drive = drive_of(batch=1)
    for number, tenant in enumerate("aaab", 1):
        drive.ask(request([number], tenant=tenant, max_tokens=1))
    drive.run()
    started = [start.turn for plan in drive.plans for start in plan.start]
    assert started == [1, 4, 2, 3]


@pytest.mark.parametrize("priority", [0, 10])
def test_a_tenant_that_floods_the_queue_delays_another_by_one_turn(priority: int) -> None:
    drive = drive_of(batch=1)
    for number in range(1, 21):
        drive.ask(request([number], tenant="a", max_tokens=1, priority=priority))
    drive.round()
    for number in (31, 32):
        drive.ask(request([number], tenant="b", max_tokens=1))
    drive.run()
    started = [start.turn for plan in drive.plans for start in plan.start]
    assert started[:6] == [1, 2, 21, 3, 22, 4]


def test_no_more_turns_than_the_batch_have_a_place() -> None:
    drive = drive_of(batch=2)
    for number in range(3):
        drive.ask(request([number + 1]))
    drive.round()
    assert (drive.planner.running, drive.planner.waiting) == (2, 1)


def test_an_exclusive_agents_turns_go_one_after_another() -> None:
    drive = drive_of()
    first = drive.ask(request([1], "ada", max_tokens=3))
    second = drive.ask(request([2], "ada", max_tokens=3))
    other = drive.ask(request([3], "bob", max_tokens=3))
    drive.round()
    assert [turn.sequence is not None for turn in (first, second, other)] == [True, False, True]
    drive.run()
    assert [len(one.ended) for one in drive.told.values()] == [1, 1, 1]


def test_an_agents_second_turn_does_not_overtake_its_first_that_waits_for_a_prefix() -> None:
    drive = drive_of(chunk=10)
    drive.ask(request([*SYSTEM, 1], shared=100, max_tokens=5))
    first = drive.ask(request([*SYSTEM, 2], "ada", shared=100, max_tokens=5))
    second = drive.ask(request([9], "ada", max_tokens=5))
    drive.round()
    assert (first.state, second.state) == (TurnState.QUEUED, TurnState.QUEUED)
    drive.run()
    started = [start.turn for plan in drive.plans for start in plan.start]
    assert started == [1, 2, 3]


def test_two_agents_of_one_name_in_different_tenants_do_not_wait_for_each_other() -> None:
    drive = drive_of()
    drive.ask(request([1], "ada", tenant="a"))
    drive.ask(request([1], "ada", tenant="b"))
    drive.round()
    assert drive.planner.running == 2


def test_names_that_are_only_hints_run_at_once() -> None:
    drive = drive_of()
    asked = request([1], "ada")
    hint = Identity("ada")
    for _ in range(2):
        drive.ask(TurnRequest("x", hint, asked.root, asked.prompt))
    drive.round()
    assert drive.planner.running == 2


def test_who_could_restore_what_another_just_computes_waits_for_it() -> None:
    drive = drive_of(chunk=30)
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
    drive = drive_of(chunk=30, in_flight=in_flight)
    first = drive.ask(request([*SYSTEM, 1], shared=100, max_tokens=500))
    second = drive.ask(request([*SYSTEM, 2], shared=100))
    until(drive, second, TurnState.DECODING)
    assert drive.told[2].placed[0].cached == 100
    assert first.finish is None
    assert len(first.sampled) < 10


def test_nobody_waits_for_a_prefix_that_is_restored_and_not_computed() -> None:
    drive = drive_of()
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
    drive = drive_of(chunk=10)
    prefix = SYSTEM[:length]
    drive.ask(request([*prefix, 1], shared=length, store=store))
    second = drive.ask(request([*prefix, 2], shared=length))
    drive.round()
    assert (second.state is TurnState.QUEUED) == waits


@pytest.mark.parametrize("in_flight", [1, 2])
def test_nobody_waits_for_the_prefix_of_a_turn_that_was_stopped(in_flight: int) -> None:
    drive = drive_of(chunk=10, in_flight=in_flight)
    first = drive.ask(request([*SYSTEM, 1], shared=100))
    second = drive.ask(request([*SYSTEM, 2], shared=100))
    for _ in range(in_flight):
        drive.round()
    drive.planner.cancel(first.number)
    assert (drive.round().start != ()) == (in_flight == 2), "its row is still under way"
    until(drive, second, TurnState.DECODING)
    assert drive.told[1].ended == [Finish.CANCELLED]


def test_who_waits_for_a_prefix_goes_on_when_the_one_who_computes_it_fails() -> None:
    drive = drive_of(chunk=10)
    first = drive.ask(request([*SYSTEM, 1], shared=100))
    second = drive.ask(request([*SYSTEM, 2], shared=100, max_tokens=1))
    until(drive, first, TurnState.PREFILLING)
    drive.round(lambda sequence: sequence == first.live.number)
    drive.run()
    assert drive.told[1].ended == [Finish.FAILED]
    assert drive.told[2].ended == [Finish.LENGTH]
    assert second.cached <= 20


def test_who_waits_for_a_prefix_goes_on_when_the_one_who_computes_it_is_preempted() -> None:
    prefix = [7] * 600
    drive = drive_of(blocks=4, reserve=1, chunk=64, busy_chunk=64)
    drive.ask(request([1] * 250, max_tokens=20, number=1))
    until(drive, drive.planner.turns[1], TurnState.DECODING)
    for number, tail in ((2, 2), (3, 3)):
        drive.ask(request([*prefix, tail], shared=600, max_tokens=20, number=number))
    drive.run()
    assert drive.told[2].preempted == 1
    assert [one.ended for one in drive.told.values()] == [[Finish.LENGTH]] * 3
    assert drive.told[2].forwarded + drive.told[3].forwarded <= 601 + 1 + 64 + 2 * 20


@define(eq=False)
class _Watched(Planner):
    """Counts how often it looks at a turn that waits."""

    looks: int = field(default=0, init=False)

    def _may_start(self, turn: Turn) -> bool:
        self.looks += 1
        return super()._may_start(turn)


def test_turns_that_wait_are_not_looked_at_again_while_nothing_happened() -> None:
    plain = drive_of(chunk=10).planner
    planner = _Watched(plain.lineage, plain.hot, ends=plain.ends, limits=plain.limits)
    drive = Drive(planner)
    drive.ask(request([*SYSTEM, 1], shared=100, max_tokens=40))
    for tail in range(2, 6):
        drive.ask(request([*SYSTEM, tail], shared=100, max_tokens=1))
    for _ in range(4):
        drive.advance()
    once = planner.looks
    assert once > 4
    for _ in range(5):
        drive.advance()
    assert chunks(drive) == [10] * 8
    assert planner.looks == once


def test_nobody_waits_for_another_tenants_prefix() -> None:
    drive = drive_of(chunk=10)
    drive.ask(request([*SYSTEM, 1], shared=100, tenant="a"))
    drive.ask(request([*SYSTEM, 2], shared=100, tenant="b"))
    drive.round()
    assert drive.planner.running == 2
