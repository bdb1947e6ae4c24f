"""The queue: in turn across tenants, in order within one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcache.domain.errors import IntegrityError
from agentcache.domain.turn import Turn, TurnState
from agentcache.domain.waiting import TurnQueue
from tests.unit.simulated_driver import request


def _turn(number: int, tenant: str = "a") -> Turn:
    return Turn(number, request([1], tenant=tenant), 0.0, 1)


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


@pytest.mark.parametrize("damage", ["size", "tenant", "empty", "state", "twice"])
def test_damage_is_noticed(damage: str) -> None:
    turn = _turn(1)
    queue = _queue(turn)
    if damage == "size":
        queue._size = 2
    elif damage == "tenant":
        queue._tenants["b"] = queue._tenants.pop("a")
    elif damage == "empty":
        queue._tenants["b"] = type(queue._tenants["a"])()
    elif damage == "state":
        turn.state = TurnState.READY
    else:
        queue.push(turn)
    with pytest.raises(IntegrityError):
        queue.check_integrity()
