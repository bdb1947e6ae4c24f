"""The end, whatever is going on when it comes: everything acknowledged is in the home."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from agentcache.conductor import Conductor
from agentcache.domain.compaction import SMALL_AT_ONCE
from agentcache.domain.errors import Unavailable
from agentcache.domain.events import Delta, Ended
from agentcache.domain.turn import TurnState
from tests.frail import Disk
from tests.talks import Talk
from tests.unit.test_loop import Heard, begun
from tests.world import PATIENCE, Looped, World, looped


@pytest.fixture
def running() -> Iterator[Looped]:
    with looped(World(blocks=256)) as running:
        running.loop.wait_open()
        yield running


def say(running: Looped, talk: Talk, text: str) -> None:
    """A whole turn, which is in the home when this returns."""
    heard, said = begun(running, talk.ask(text, max_tokens=4)), ""
    while not isinstance(event := heard.next(), Ended):
        said += event.text if isinstance(event, Delta) else ""
    talk.hear(said)


def until(running: Looped, so: Callable[[Conductor], object]) -> None:
    while not running.loop.ask(so).result(PATIENCE):
        pass


def is_fetching(conductor: Conductor) -> bool:
    return any(turn.state is TurnState.FETCHING for turn in conductor.planner.turns.values())


def is_draining(running: Looped) -> Callable[[Conductor], bool]:
    return lambda _conductor: running.loop.phase == "draining"


def check_home(running: Looped, talk: Talk) -> None:
    """What was acknowledged is there, in as many files as are known, and goes on from there."""
    disk = running.world.disk
    disk.sessions.check_integrity()
    disk.segments.check_integrity()
    known = {one.key for one in disk.sessions.reopened().load().segments}
    assert known == disk.segments._kept.keys()
    world = running.world
    world.disk = Disk(disk.segments, disk.sessions.reopened())
    with world:
        before = world.session("ada")
        assert before is not None
        assert before.cursor is not None
        said = world.say(talk, "still there?")
        assert said.admitted.cached == before.cursor.row >= len(said.request.prompt) - 40


def test_rows_that_are_being_fetched_are_waited_for_and_their_turn_is_told(
    running: Looped,
) -> None:
    talk = Talk("ada", system="You remember all that you are told. " * 3)
    say(running, talk, "one")
    running.loop.ask(lambda one: one.planner.hot.drop_resting()).result(PATIENCE)
    with running.world.disk.reads:
        heard = begun(running, talk.ask("two", max_tokens=4))
        talk.take_back()
        until(running, is_fetching)
        running.loop.stop(within=0)
        until(running, is_draining(running))
    running.loop.join()
    assert isinstance(heard.last(), Unavailable)
    assert running.loop.phase == "stopped"
    check_home(running, talk)


@pytest.mark.parametrize("stage", ["joined", "written"])
def test_segments_that_are_being_merged_are_merged_or_as_they_were(
    running: Looped, stage: str
) -> None:
    talk, disk = Talk("ada"), running.world.disk
    with ExitStack() as held:
        held.enter_context(disk.reads)
        for number in range(2 * SMALL_AT_ONCE):
            say(running, talk, f"turn {number}")
        until(running, lambda one: one.compactor._busy)
        if stage == "written":
            held.enter_context(disk.writes)
            disk.reads.release()
            until(running, lambda one: one.keeper.outbox.coming_bytes)
            disk.reads.acquire()
        running.loop.stop(within=0)
        until(running, is_draining(running))
    running.loop.join()
    check_home(running, talk)


def test_a_turn_that_is_being_committed_is_told_when_it_is_there(running: Looped) -> None:
    talk = Talk("ada")
    with running.world.disk.writes:
        heard: Heard = begun(running, talk.ask("one", max_tokens=4))
        until(running, lambda one: one.keeper.is_writing and not one.planner.turns)
        running.loop.stop(within=0)
        until(running, is_draining(running))
    running.loop.join()
    said = ""
    while not isinstance(event := heard.next(), Ended):
        said += event.text if isinstance(event, Delta) else ""
    talk.hear(said)
    check_home(running, talk)
