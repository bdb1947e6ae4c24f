"""The disk is never filled beyond what shall stay free: agents give way, or nothing is written."""

from agentcache.domain.request import Tier
from agentcache.outbox import FILE_OVERHEAD
from tests.talks import Talk
from tests.world import World

ROW = 2 * (8 + 4) * 4
AGENT = FILE_OVERHEAD + 30 * ROW
FLOOR = 1_000_000


def a_world(agents: int) -> World:
    """One whose disk has room for about so many agents above the floor."""
    return World(disk_floor=FLOOR, free=FLOOR + agents * AGENT)


def test_the_agents_that_were_used_longest_ago_give_way_to_the_floor() -> None:
    with a_world(2) as world:
        for name in "abcdefgh":
            world.say(Talk(name), f"I am {name}")
            assert world.free - world.disk.nbytes() >= FLOOR
        assert world.conductor.keeper.read_only is None
        assert Tier.COLD in {tier for tier, _, _ in world.telemetry.evictions}
        world.rest_hot()
        assert world.session("h").cursor.row > 15  # type: ignore[union-attr]


def test_agents_do_not_give_way_for_more_than_is_missing() -> None:
    with a_world(2) as world:
        for name in "abcdefgh":
            world.say(Talk(name), f"I am {name}")
        assert len(world.disk.segments._kept) >= 2


def test_nobody_gives_way_when_somebody_else_fills_the_disk() -> None:
    with a_world(8) as world:
        for name in "abc":
            world.say(Talk(name), f"I am {name}")
        held = world.disk.nbytes()
        world.free = FLOOR - 10 * AGENT
        said = world.say(Talk("d"), "I am d")
        assert said.over
        assert world.disk.nbytes() == held
        assert "--disk-floor" in (world.conductor.keeper.read_only or "")


def test_what_could_not_be_written_is_written_when_there_is_room_again() -> None:
    with a_world(8) as world:
        talk = Talk("ada")
        world.free = 0
        world.say(talk, "one")
        assert world.disk.nbytes() == 0
        world.free = FLOOR + 8 * AGENT
        world.say(talk, "two")
        assert world.conductor.keeper.read_only is None
        world.restart()
        assert world.say(talk, "three").admitted.cached > 30


def test_nothing_is_merged_below_the_floor() -> None:
    with World(disk_floor=FLOOR, free=FLOOR + 40 * AGENT, blocks=256, context=60_000) as world:
        talk = Talk("ada")
        for number in range(5):
            world.say(talk, f"turn {number}")
        world.free = FLOOR + world.disk.nbytes() + 12 * FILE_OVERHEAD
        for number in range(8):
            world.say(talk, f"turn {number}")
            assert world.free - world.disk.nbytes() >= FLOOR
