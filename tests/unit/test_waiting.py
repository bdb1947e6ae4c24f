"""The queue: in turn across tenants, in order within one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcache.domain.errors import IntegrityError
from agentcache.domain.turn import Turn, TurnState
from agentcache.domain.waiting import AGEING_SECONDS, AgentOrder, TurnQueue
from tests.unit.simulated_driver import request


def _turn(number: int, tenant: str = "a", arrived: float = 0.0, priority: int = 0) -> Turn:
    return Turn(number, request([1], tenant=tenant, priority=priority), arrived, 1)


def _queue(*turns: Turn) -> TurnQueue:
    queue = TurnQueue()
    for turn in turns:
        queue.push(turn)
    return queue


def _served(queue: TurnQueue) -> list[int]:
    numbers = []
    while (turn := queue.first(lambda _turn: True)) is not None:
        queue.take(turn)
        queue.check_integrity()
        numbers.append(turn.number)
    return numbers


def test_turns_of_one_tenant_are_served_in_order() -> None:
    assert _served(_queue(_turn(1), _turn(2), _turn(3))) == [1, 2, 3]


def test_tenants_are_served_in_turn_however_many_turns_one_of_them_has() -> None:
    many = [_turn(number) for number in range(1, 5)]
    assert _served(_queue(*many, _turn(8, "b"), _turn(9, "b"))) == [1, 8, 2, 9, 3, 4]


def test_a_tenant_that_was_served_and_asks_again_is_asked_last() -> None:
    queue = _queue(_turn(1), _turn(2, "b"))
    queue.take(next(iter(queue)))
    queue.push(_turn(3))
    assert _served(queue) == [2, 3]


def test_who_had_a_place_before_waits_in_front_of_its_tenants_others() -> None:
    queue = _queue(_turn(1))
    for number in (3, 2):
        turn = _turn(number)
        turn.returned = True
        queue.push(turn)
    assert _served(queue) == [2, 3, 1]


def test_who_may_not_start_yet_is_passed_over_and_keeps_its_place() -> None:
    queue = _queue(_turn(1), _turn(2))
    second = queue.first(lambda turn: turn.number > 1)
    assert second is not None
    assert second.number == 2
    assert queue.first(lambda turn: turn.number > 2) is None
    assert _served(queue) == [1, 2]


def test_a_turn_that_waits_no_longer_is_not_counted() -> None:
    turn = _turn(1)
    queue = _queue(turn, _turn(2, "b"))
    queue.remove(turn)
    assert len(queue) == 1
    assert [one.number for one in queue] == [2]
    queue.check_integrity()


@given(st.lists(st.sampled_from("abc"), max_size=12))
def test_nobody_waits_for_more_turns_of_another_tenant_than_it_has_before_it(
    tenants: list[str],
) -> None:
    order = _served(_queue(*(_turn(number, one) for number, one in enumerate(tenants))))
    assert sorted(order) == list(range(len(tenants)))
    served = [tenants[number] for number in order]
    for position, tenant in enumerate(served):
        own = served[:position].count(tenant)
        assert all(served[:position].count(other) <= own + 1 for other in "abc")


def test_turns_of_higher_priority_go_first() -> None:
    assert _served(_queue(_turn(1), _turn(2, priority=1), _turn(3, priority=-1))) == [2, 1, 3]


def test_priority_counts_within_a_tenant_alone() -> None:
    turns = [_turn(1), _turn(2, "b", priority=9), _turn(3, "b", priority=9), _turn(4)]
    assert _served(_queue(*turns)) == [1, 2, 4, 3]


def test_who_waited_long_enough_goes_before_those_of_higher_priority() -> None:
    later = AGEING_SECONDS + 1
    assert _served(_queue(_turn(1), _turn(2, arrived=later, priority=1))) == [1, 2]
    assert _served(_queue(_turn(1), _turn(2, arrived=later, priority=2))) == [2, 1]


arrivals = st.lists(st.tuples(st.floats(0, 400), st.integers(-10, 10)), max_size=20)


@given(arrivals)
def test_nobody_is_overtaken_by_who_came_later_than_its_priority_is_worth(
    coming: list[tuple[float, int]],
) -> None:
    turns = [_turn(n, arrived=at, priority=level) for n, (at, level) in enumerate(sorted(coming))]
    served = [turns[number] for number in _served(_queue(*turns))]
    for place, turn in enumerate(served):
        for overtaken in served[place + 1 :]:
            more = turn.request.priority - overtaken.request.priority
            assert turn.arrived <= overtaken.arrived + AGEING_SECONDS * more


def test_a_turn_of_the_least_priority_is_served_in_bounded_time_whatever_comes() -> None:
    queue, now = _queue(_turn(0, priority=-10)), 0.0
    for number in range(1, 1000):
        now += 1.0
        queue.push(_turn(number, arrived=now, priority=10))
        turn = queue.first(lambda _turn: True)
        assert turn is not None
        queue.take(turn)
        if turn.number == 0:
            break
    assert now == 20 * AGEING_SECONDS


def test_the_first_deadline_is_that_of_a_turn_that_waits_for_its_first_place() -> None:
    queue = TurnQueue()
    turns = [
        Turn(number, request([1], deadline=deadline), 0.0, 1)
        for number, deadline in ((1, 9.0), (2, 3.0), (3, 5.0))
    ]
    for turn in turns:
        queue.push(turn)
    assert queue.next_deadline() == 3.0
    queue.take(turns[1])
    turns[1].state = TurnState.READY
    assert queue.next_deadline() == 5.0
    assert queue.take_late(4.9) == []
    assert queue.take_late(5.0) == [turns[2]]
    turns[2].state = TurnState.DONE
    assert [turn.number for turn in queue] == [1]
    assert queue.next_deadline() == 9.0


def test_a_turn_that_lost_its_first_place_before_it_was_told_keeps_its_deadline() -> None:
    queue, turn = TurnQueue(), Turn(1, request([1], deadline=5.0), 0.0, 1)
    queue.push(turn)
    queue.take(turn)
    turn.state = TurnState.FETCHING
    assert queue.next_deadline() is None
    turn.state, turn.returned = TurnState.QUEUED, True
    queue.push(turn)
    assert queue.take_late(6.0) == [turn]


class TestAgentOrder:
    def test_an_agents_turns_are_first_one_after_another(self) -> None:
        order = AgentOrder()
        one, two = (Turn(number, request([1], "ada"), 0.0, 1) for number in (1, 2))
        for turn in (one, two):
            order.add(turn)
        assert (order.is_first(one), order.is_first(two)) == (True, False)
        order.remove(one)
        assert order.is_first(two)
        order.check_integrity({2: two})
        order.remove(two)
        assert two.request.identity not in order

    def test_nobody_else_is_ordered(self) -> None:
        order, turn = AgentOrder(), _turn(1)
        order.add(turn)
        assert order.is_first(turn)
        assert turn.request.identity not in order
        order.remove(turn)

    def test_damage_is_noticed(self) -> None:
        order, turn = AgentOrder(), Turn(1, request([1], "ada"), 0.0, 1)
        order.add(turn)
        with pytest.raises(IntegrityError):
            order.check_integrity({})
        with pytest.raises(IntegrityError):
            AgentOrder().check_integrity({1: turn})


@pytest.mark.parametrize("damage", ["size", "tenant", "empty", "state", "twice", "order"])
def test_damage_is_noticed(damage: str) -> None:
    turn = _turn(1)
    queue = _queue(turn)
    if damage == "size":
        queue._size = 2
    elif damage == "tenant":
        queue._tenants["b"] = queue._tenants.pop("a")
    elif damage == "empty":
        queue._tenants["b"] = type(queue._tenants["a"])()
    elif damage == "order":
        queue._tenants["a"].insert(0, _turn(2))
        queue._size = 2
    elif damage == "state":
        turn.state = TurnState.READY
    else:
        queue.push(turn)
    with pytest.raises(IntegrityError):
        queue.check_integrity()
