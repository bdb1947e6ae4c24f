"""What is kept outside the engine: once, within the caps, and for good where that was promised."""

from collections.abc import Callable, Iterator

import pytest
from attrs import evolve

from agentcache.domain.errors import IntegrityError, StoreFull
from agentcache.domain.request import Miss, Tier
from agentcache.domain.session import Cursor, SessionKey
from agentcache.outbox import FILE_OVERHEAD
from tests.talks import Said, Talk
from tests.world import World

SYSTEM = "You are an agent among others, and all of you have been told the same."
ROW = 2 * (8 + 4) * 4  # bytes: two layers, keys and values, float32
TURN = 30  # tokens of a short turn, at most


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


def forwarded(world: World, act: Callable[[], Said]) -> tuple[Said, int]:
    """What `act` said, and how many tokens were passed to the model for it."""
    before = world.telemetry.tokens_forwarded
    said = act()
    return said, world.telemetry.tokens_forwarded - before


class TestOnce:
    def test_every_row_is_encoded_once(self, world: World) -> None:
        talk = Talk("ada", system=SYSTEM)
        for text in ("one", "two", "three"):
            world.say(talk, text)
        spans = sorted(world.codec.encoded)
        assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]

    def test_every_row_is_written_once(self, world: World) -> None:
        talk = Talk("ada", system=SYSTEM)
        for text in ("one", "two", "three"):
            world.say(talk, text)
        session = world.session("ada")
        assert session is not None
        assert session.cursor is not None
        assert len({one.key for one in world.disk.written}) == len(world.disk.written)
        assert world.telemetry.bytes_stored == session.cursor.row * ROW
        assert world.disk.nbytes() == session.cursor.row * ROW

    def test_a_turn_writes_the_rows_that_are_new(self, world: World) -> None:
        talk = Talk("ada", system=SYSTEM)
        world.say(talk, "one")
        before = world.telemetry.bytes_stored
        said, new = forwarded(world, lambda: world.say(talk, "two"))
        assert said.admitted.cached > 0
        assert world.telemetry.bytes_stored - before == new * ROW

    def test_agents_store_what_they_share_once(self, world: World) -> None:
        first = world.say(Talk("ada", system=SYSTEM), "I am Ada.")
        alone = world.telemetry.bytes_stored
        other, new = forwarded(world, lambda: world.say(Talk("bob", system=SYSTEM), "I am Bob!"))
        shared = other.request.prompt.shared
        assert shared == first.request.prompt.shared > 20
        assert other.admitted.cached >= shared
        assert world.telemetry.bytes_stored - alone == new * ROW

    def test_agents_do_not_see_each_others_words(self, world: World) -> None:
        world.say(Talk("ada", system=SYSTEM), "the word is rose")
        said = world.say(Talk("bob", system=SYSTEM), "the word is")
        assert said.admitted.cached < len(said.request.prompt) - 1

    def test_tenants_share_nothing(self, world: World) -> None:
        world.say(Talk("ada", system=SYSTEM), "one")
        said = world.say(Talk("ada", system=SYSTEM, tenant="other"), "one")
        assert said.admitted.cached == 0
        assert world.session("ada", "other") is not None

    def test_a_fork_encodes_and_writes_only_what_it_says_itself(self, world: World) -> None:
        talk = Talk("ada", system=SYSTEM)
        world.say(talk, "one")
        fork = Talk("bob", system=SYSTEM, history=list(talk.history))
        said, new = forwarded(world, lambda: world.say(fork, "two"))
        assert said.admitted.cached > TURN
        assert world.disk.nbytes() == world.telemetry.bytes_stored
        assert sum(stop - start for start, stop in world.codec.encoded[2:]) == new

    def test_a_turn_that_adds_no_rows_writes_no_payload(self, world: World) -> None:
        world.say(Talk("ada"), "one", max_tokens=1)
        written = len(world.disk.written)
        world.say(Talk("bob"), "one", max_tokens=1)
        assert len(world.disk.written) == written
        assert world.names() == ["ada", "bob"]

    def test_a_turn_that_changes_nothing_commits_nothing(self, world: World) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        commits = world.disk.commits
        said = world.begin(talk.ask("two"))
        world.step()
        world.cancel(said)
        world.settle()
        assert said.ended.completion == 0
        assert world.disk.commits == commits


class TestTiers:
    def test_what_left_ram_is_read_again_and_stays_there(self, world: World) -> None:
        talk = Talk("ada", system=SYSTEM)
        world.say(talk, "one")
        world.go_cold()
        assert world.conductor.keeper.tiers.warm == {}
        assert world.say(talk, "two").admitted.tier is Tier.COLD
        world.rest_hot()
        assert world.say(talk, "three").admitted.tier is Tier.WARM

    def test_the_warm_cap_holds_after_every_turn(self, world: World) -> None:
        keeper = world.conductor.keeper
        keeper.tiers.warm_cap = 2 * TURN * ROW
        talks = [Talk(name) for name in "abcd"]
        for text in ("one", "two", "three"):
            for talk in talks:
                world.say(talk, text)
                assert keeper.lineage.nbytes(Tier.WARM) <= keeper.tiers.warm_cap
        assert {tier for tier, _, _ in world.telemetry.evictions} == {Tier.WARM}
        world.restart()
        assert all(world.say(talk, "four").admitted.cached > 0 for talk in talks)

    def test_the_warm_cap_holds_after_a_turn_that_leaves_nothing_behind(self, world: World) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        world.go_cold()
        world.conductor.keeper.tiers.warm_cap = 0
        assert world.say(talk, "two", store=False).admitted.tier is Tier.COLD
        assert world.conductor.keeper.tiers.warm == {}

    def test_the_disk_cap_holds_after_every_turn(self) -> None:
        with World(disk_cap=4 * (FILE_OVERHEAD + TURN * ROW)) as world:
            keeper = world.conductor.keeper
            for text in ("one", "two"):
                for name in "abcdef":
                    world.say(Talk(name), f"{name} {text}")
                    assert keeper.room.cold_bytes <= keeper.room.cap
                    assert world.disk.nbytes() <= keeper.room.cap
            assert keeper.read_only is None
            assert Tier.COLD in {tier for tier, _, _ in world.telemetry.evictions}

    def test_the_disk_cap_counts_what_is_still_being_written(self) -> None:
        with World(disk_cap=2 * (FILE_OVERHEAD + TURN * ROW)) as world:
            with world.disk.writes:
                turns = [world.begin(Talk(name).ask(name, max_tokens=3)) for name in "abc"]
                while world.conductor.planner.turns:
                    world.step()
            world.settle()
            assert all(turn.over for turn in turns)
            assert world.conductor.keeper.room.cold_bytes <= world.disk_cap

    def test_a_home_is_brought_within_a_smaller_cap_when_it_is_opened(self, world: World) -> None:
        for name in "abcd":
            world.say(Talk(name), name)
        world.disk_cap = 2 * (FILE_OVERHEAD + TURN * ROW)
        world.restart()
        assert world.conductor.keeper.room.cold_bytes <= world.disk_cap
        world.settle()
        assert len(world.disk.segments._kept) == 2

    def test_the_agent_that_was_used_last_is_evicted_last(self, world: World) -> None:
        talks = [Talk(name) for name in "abc"]
        for text in ("one", "two"):
            for talk in talks:
                world.say(talk, f"{talk.name} {text}")
        world.say(talks[0], "three")
        world.disk_cap = 4 * (FILE_OVERHEAD + TURN * ROW)
        world.restart()
        assert world.say(talks[0], "four").admitted.cached > 2 * TURN
        assert world.say(talks[1], "four").admitted.miss is Miss.EVICTED

    def test_a_turn_that_can_never_fit_evicts_nobody(self) -> None:
        with World(disk_cap=2 * (FILE_OVERHEAD + TURN * ROW)) as world:
            world.say(Talk("ada"), "one")
            world.say(Talk("bob", tenant="other"), "many words " * 60)
            keeper = world.conductor.keeper
            assert not world.telemetry.evictions
            assert keeper.read_only is not None
            assert "disk cap" in keeper.read_only
            stored = {key.name: one.cursor for key, one in world.stored().items()}
            assert stored["bob"] is None
            assert stored["ada"] is not None


class TestForgetting:
    def test_an_agent_that_is_forgotten_is_forgotten_for_good(self, world: World) -> None:
        world.say(Talk("ada"), "one")
        session = world.session("ada")
        assert session is not None
        assert world.conductor.keeper.forget(session.key) == session
        world.settle()
        assert world.stored() == {}
        world.kill()
        assert world.names() == []

    def test_its_rows_leave_ram_and_disk_with_it(self, world: World) -> None:
        talk = Talk("ada", system=SYSTEM)
        world.say(talk, "one")
        world.say(talk, "two")
        session = world.session("ada")
        assert session is not None
        world.conductor.keeper.forget(session.key)
        world.settle()
        assert world.disk.nbytes() == 0
        assert not world.segments(Tier.COLD)
        assert not world.segments(Tier.WARM)

    def test_rows_that_others_build_on_stay(self, world: World) -> None:
        ada, bob = Talk("ada", system=SYSTEM), Talk("bob", system=SYSTEM)
        world.say(ada, "I am Ada.")
        world.say(bob, "I am Bob!")
        session = world.session("ada")
        assert session is not None
        world.conductor.keeper.forget(session.key)
        world.settle()
        assert world.say(bob, "Who am I?").admitted.cached > len(SYSTEM) // 2
        world.kill()
        assert world.say(bob, "And now?").admitted.cached > len(SYSTEM) // 2

    def test_one_that_the_home_could_not_forget_does_not_keep_it_from_evicting(
        self, world: World
    ) -> None:
        world.say(Talk("ada"), "one")
        session = world.session("ada")
        assert session is not None
        world.disk.fail("commit", OSError("not now"))
        keeper = world.conductor.keeper
        keeper.forget(session.key)
        world.settle()
        assert world.stored()
        cap, keeper.room.cap = keeper.room.cap, 0
        keeper.room.make(0)
        world.settle()
        assert world.stored() == {}
        assert world.disk.nbytes() == 0
        keeper.room.cap = cap

    def test_nobody_is_forgotten_twice(self, world: World) -> None:
        assert world.conductor.keeper.forget(SessionKey("default", b"root", "ada")) is None
        assert not world.conductor.keeper.is_writing

    def test_a_turn_that_is_being_written_again_does_not_bring_the_agent_back(
        self, world: World
    ) -> None:
        world.disk.fail("put", StoreFull(1))
        with world.disk.writes:
            said = world.begin(Talk("ada").ask("one", max_tokens=2))
            while said.number in world.conductor.planner.turns:
                world.step()
            session = world.session("ada")
            assert session is not None
            world.conductor.keeper.forget(session.key)
        world.settle()
        assert world.stored() == {}


class TestIntegrity:
    def test_payloads_must_be_those_of_the_warm_tier(self, world: World) -> None:
        world.say(Talk("ada"), "one")
        warm = world.conductor.keeper.tiers._warm
        key, payload = warm.popitem()
        with pytest.raises(IntegrityError, match="payloads"):
            world.conductor.check_integrity()
        warm[key] = payload

    def test_what_is_being_written_must_be_in_ram(self, world: World) -> None:
        world.say(Talk("ada"), "one")
        (segment,) = world.segments(Tier.COLD)
        world.leave_warm()
        world.conductor.keeper.outbox._writing[segment.key] = segment
        with pytest.raises(IntegrityError, match="being written"):
            world.conductor.check_integrity()
        world.conductor.keeper.outbox._writing.clear()

    @pytest.mark.parametrize("row", [0, 10_000])
    def test_sessions_must_stand_where_rows_are(self, world: World, row: int) -> None:
        world.say(Talk("ada"), "one")
        session = world.session("ada")
        assert session is not None
        assert session.cursor is not None
        registry = world.conductor.keeper.registry
        for wrong in (Cursor(b"nowhere", 1), Cursor(session.cursor.key, row)):
            registry.put(evolve(session, cursor=wrong))
            with pytest.raises(IntegrityError, match="stands where nothing is"):
                world.conductor.check_integrity()
        registry.put(session)
