"""Agents whose time is over are forgotten; a clock that jumps forgets nobody."""

import logging
from collections.abc import Iterator

import pytest
from attrs import evolve

from agentcache.expiry import GRACE_SECONDS
from tests.talks import Talk
from tests.world import World

DAY = 86_400.0


def set_expiry(world: World, name: str, seconds: float, pinned: bool = False) -> None:
    session = world.session(name)
    assert session is not None
    expires = world.clock.wall() + seconds
    session = evolve(session, expires=expires, pinned=pinned)
    assert session.cursor is not None
    keeper = world.conductor.keeper
    keeper.write(keeper.lineage.path(session.cursor), session)
    world.settle()


def pass_time(world: World, seconds: float) -> None:
    world.clock.advance(seconds)
    world.conductor.round()
    world.settle()


@pytest.fixture
def world() -> Iterator[World]:
    with World(idle_ttl=DAY) as world:
        world.say(Talk("ada"), "one")
        yield world


def test_an_agent_is_forgotten_when_it_expires(world: World) -> None:
    world.say(Talk("bob"), "one")
    set_expiry(world, "ada", 2 * GRACE_SECONDS)
    pass_time(world, 1.9 * GRACE_SECONDS)
    assert world.names() == ["ada", "bob"]
    pass_time(world, 0.2 * GRACE_SECONDS)
    assert world.names() == ["bob"]
    world.restart()
    assert world.names() == ["bob"]


def test_one_that_is_pinned_expires_as_it_was_told_to(world: World) -> None:
    set_expiry(world, "ada", 2 * GRACE_SECONDS, pinned=True)
    pass_time(world, 3 * GRACE_SECONDS)
    assert world.names() == []
    assert world.holds() == 0


def test_an_agent_that_nobody_talks_to_is_forgotten(world: World) -> None:
    pass_time(world, DAY / 2)
    world.say(Talk("bob"), "one")
    pass_time(world, DAY / 2 + 1)
    assert world.names() == ["bob"]


def test_a_pinned_one_stays_however_long_nobody_talks_to_it(world: World) -> None:
    session = world.session("ada")
    assert session is not None
    world.conductor.keeper.tiers.place(evolve(session, pinned=True))
    pass_time(world, 10 * DAY)
    assert world.names() == ["ada"]


def test_what_expires_later_than_idle_agents_do_stays_until_then(world: World) -> None:
    set_expiry(world, "ada", 3 * DAY)
    pass_time(world, 2 * DAY)
    assert world.names() == ["ada"]


def test_nobody_is_forgotten_right_after_the_start(world: World) -> None:
    set_expiry(world, "ada", 10.0)
    world.restart()
    pass_time(world, GRACE_SECONDS - 10)
    assert world.names() == ["ada"]
    pass_time(world, 20)
    assert world.names() == []


def test_a_jump_of_the_clock_forgets_nobody_until_it_can_be_set_right(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    pass_time(world, 2 * GRACE_SECONDS)
    world.clock.jump(10 * DAY)
    with caplog.at_level(logging.WARNING):
        pass_time(world, 10)
    assert "the clock jumped" in caplog.text
    world.clock.jump(-10 * DAY)
    pass_time(world, 2 * GRACE_SECONDS)
    assert world.names() == ["ada"]
    world.clock.jump(10 * DAY)
    pass_time(world, 10)
    pass_time(world, GRACE_SECONDS)
    assert world.names() == []


def test_nobody_is_forgotten_while_a_turn_runs(world: World) -> None:
    set_expiry(world, "ada", GRACE_SECONDS)
    said = world.begin(Talk("bob").ask("one", max_tokens=50))
    world.step()
    world.clock.advance(2 * GRACE_SECONDS)
    world.step()
    assert world.session("ada") is not None
    world.settle()
    assert said.over
