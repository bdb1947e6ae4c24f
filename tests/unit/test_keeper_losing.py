"""What is lost outside the engine, and that nothing else goes with it."""

from collections.abc import Iterator
from itertools import repeat

import pytest
from attrs import evolve

from agentcache.domain.errors import CatalogueConflict, StoreFull
from agentcache.domain.request import Miss, Tier
from agentcache.domain.tokens import common_prefix
from agentcache.domain.turn import TurnState
from agentcache.outbox import FILE_OVERHEAD
from agentcache.ports.session_store import Commit
from tests.frail import Disk
from tests.talks import Talk
from tests.world import World

SYSTEM = "You are an agent among others, and all of you have been told the same."
ROW = 2 * (8 + 4) * 4  # bytes: two layers, keys and values, float32
TURN = 30  # tokens of a short turn, at most
BEGINNING = 4  # tokens that all conversations begin with


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


class TestEviction:
    def shrink(self, world: World, segments: int) -> None:
        """Let the home have room for so many of the segments it holds."""
        world.rest_hot()
        keeper = world.conductor.keeper
        sizes = sorted(one.nbytes + FILE_OVERHEAD for one in world.segments(Tier.COLD))
        keeper.room.cap = sum(sizes[-segments:]) if segments else 0
        keeper.room.make(0)
        world.settle()

    def test_an_agent_steps_back_to_the_rows_that_are_left(self, world: World) -> None:
        talk = Talk("ada")
        rows = []
        for text in ("one", "two", "three"):
            world.say(talk, text)
            session = world.session("ada")
            assert session is not None
            assert session.cursor is not None
            rows.append(session.cursor.row)
        self.shrink(world, 2)
        session = world.session("ada")
        assert session is not None
        assert session.cursor is not None
        assert session.cursor.row == rows[1]
        assert world.stored()[session.key].cursor == session.cursor
        said = world.say(talk, "four")
        assert (said.admitted.cached, said.admitted.miss) == (rows[1], Miss.EVICTED)

    def test_an_agent_without_rows_is_still_known(self, world: World) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        self.shrink(world, 0)
        session = world.session("ada")
        assert session is not None
        assert session.cursor is None
        world.conductor.keeper.room.cap = world.disk_cap
        world.restart()
        said = world.say(talk, "two")
        assert (said.admitted.cached, said.admitted.miss) == (0, Miss.EVICTED)
        assert said.request.prompt.spans[: len(session.spans)] == session.spans

    def test_a_conversation_without_a_name_is_forgotten_with_its_rows(self, world: World) -> None:
        talk = Talk()
        world.say(talk, "one")
        assert len(world.names()) == len(world.stored()) == 1
        self.shrink(world, 0)
        assert world.names() == []
        assert world.stored() == {}
        assert world.say(talk, "two").admitted.miss is Miss.NO_SESSION

    def test_a_pinned_session_keeps_its_rows(self, world: World) -> None:
        talks = [Talk("ada"), Talk("bob")]
        for talk in talks:
            world.say(talk, "one")
        keeper, session = world.conductor.keeper, world.session("ada")
        assert session is not None
        assert session.cursor is not None
        path = keeper.lineage.path(session.cursor)
        keeper.write(path, evolve(session, pinned=True))
        self.shrink(world, 0)
        assert [one.key for one in world.segments(Tier.COLD)] == list(path.keys)
        keeper.room.cap = world.disk_cap
        world.restart()
        assert world.holds() == 1
        assert world.say(talks[0], "two").admitted.cached > 0
        assert world.holds() == 2  # the pin followed the cursor
        world.conductor.keeper.forget(session.key)
        assert world.holds() == 0

    def test_a_pin_keeps_rows_in_the_home_and_not_in_ram(self, world: World) -> None:
        talk, keeper = Talk("ada"), world.conductor.keeper
        world.say(talk, "one")
        session = world.session("ada")
        assert session is not None
        assert session.cursor is not None
        keeper.write(keeper.lineage.path(session.cursor), evolve(session, pinned=True))
        world.settle()
        world.go_cold()
        assert world.segments(Tier.WARM) == []
        assert len(world.segments(Tier.COLD)) == 1
        assert world.say(talk, "two").admitted.cached > 0

    def test_a_pin_keeps_rows_in_ram_that_are_not_in_the_home(self, world: World) -> None:
        talk, keeper = Talk("ada"), world.conductor.keeper
        world.disk.fail("commit", repeat(OSError("the disk is gone")))
        world.say(talk, "one")
        session = world.session("ada")
        assert session is not None
        keeper.tiers.pins.follow(evolve(session, pinned=True))
        world.go_cold()
        assert len(world.segments(Tier.WARM)) == 1
        keeper.tiers.pins.drop(session.key)
        world.leave_warm()
        assert world.segments(Tier.WARM) == []
        world.disk.recover()

    def test_what_is_being_restored_is_not_evicted(self, world: World) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        world.go_cold()
        with world.disk.reads:
            said = world.begin(talk.ask("two", max_tokens=5))
            world.reach(said, TurnState.FETCHING)
            world.conductor.keeper.room.cap = world.conductor.keeper.tiers.warm_cap = 0
            world.conductor.keeper.room.make(0)
            assert len(world.segments(Tier.COLD)) == 1
            world.conductor.keeper.room.cap = world.disk_cap
        world.settle()
        world.check_answer(said)
        assert said.admitted.cached > 0

    def test_what_two_turns_restore_at_once_is_taken_in_once(self, world: World) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        world.go_cold()
        keeper = world.conductor.keeper
        keeper.tiers.warm_cap = 0
        with world.disk.reads:
            turns = [
                world.begin(Talk(name, history=list(talk.history)).ask("two", max_tokens=3))
                for name in "ab"
            ]
            for said in turns:
                world.reach(said, TurnState.FETCHING)
        while any(not said.events for said in turns):
            world.step()  # what one of them still restores stays, whatever the cap
        world.settle()
        for said in turns:
            world.check_answer(said)
            assert said.admitted.tier is Tier.COLD
        assert keeper.tiers.warm == {}

    def test_rows_that_were_never_written_go_when_ram_is_needed(self, world: World) -> None:
        world.disk.fail("put", repeat(OSError("broken")))
        world.conductor.keeper.tiers.warm_cap = TURN * ROW
        for name in "abc":
            world.say(Talk(name, tenant=name), name)
        assert len(world.conductor.keeper.tiers.warm) == 1
        left = {one.name for one in world.conductor.keeper.registry if one.cursor is not None}
        assert left == {"c"}


class TestBadSegments:
    @pytest.mark.parametrize("missing", [True, False])
    def test_a_bad_segment_is_a_miss_and_takes_its_descendants_along(
        self, world: World, missing: bool
    ) -> None:
        talk = Talk("ada")
        for text in ("one", "two", "three"):
            world.say(talk, text)
        world.go_cold()
        first, second, third = sorted(world.segments(Tier.COLD), key=lambda one: one.start)
        store = world.disk.segments
        store.delete(second.key) if missing else store.damage(second.key)
        said = world.say(talk, "four")
        assert (said.admitted.cached, said.admitted.miss) == (first.stop, Miss.CORRUPT)
        assert len(world.telemetry.problems) == 1
        world.settle()
        home = {one.key for one in world.disk.sessions.load().segments}
        assert first.key in home
        assert third.key not in home
        assert sum(store._aside) == (0 if missing else second.nbytes)

    def test_what_cannot_be_decoded_is_a_miss(self, world: World) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        world.rest_hot()
        warm = world.conductor.keeper.tiers._warm
        (key,) = warm
        warm[key] = evolve(warm[key], codec="another")
        said = world.say(talk, "two")
        assert (said.admitted.cached, said.admitted.miss) == (0, Miss.CORRUPT)
        assert len(world.telemetry.problems) == 1

    def test_every_bad_segment_is_counted(self, world: World) -> None:
        talk = Talk("ada")
        for text in ("one", "two"):
            world.say(talk, text)
        world.go_cold()
        for one in world.segments(Tier.COLD):
            world.disk.segments.damage(one.key)
        assert world.say(talk, "three").admitted.miss is Miss.CORRUPT
        assert len(world.telemetry.problems) == 2

    def test_others_go_on_from_what_is_sound(self, world: World) -> None:
        ada, bob = Talk("ada", system=SYSTEM), Talk("bob", system=SYSTEM)
        world.say(ada, "I am Ada.")
        world.say(bob, "My name is Bob.")
        world.go_cold()
        session = world.session("bob")
        assert session is not None
        assert session.cursor is not None
        world.disk.segments.damage(session.cursor.key)
        assert world.say(bob, "two").admitted.miss is Miss.CORRUPT
        assert world.say(ada, "two").admitted.miss is Miss.NONE

    def test_a_segment_that_is_cut_while_it_is_written_is_written_again_when_it_is_made_again(
        self, world: World
    ) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        world.go_cold()
        (parent,) = world.segments(Tier.COLD)
        world.disk.segments.damage(parent.key)
        with world.disk.writes:
            ask = talk.ask("two", max_tokens=4)
            world.conductor.keeper.tiers.discard([(parent, OSError())])
            said = world.begin(ask)  # makes the same segment anew, before the old one is dropped
            while said.number in world.conductor.planner.turns:
                world.step()
            made = list(world.conductor.keeper.outbox._writing.values())
            world.conductor.keeper.tiers.discard([(made[0], OSError())])
            again = world.begin(ask)
            while again.number in world.conductor.planner.turns:
                world.step()
        world.settle()
        world.kill()
        world.check_home()
        session = world.session("ada")
        assert session is not None
        assert session.cursor is not None


class TestFullDisk:
    def test_others_are_evicted_to_make_room(self) -> None:
        with World(disk=Disk()) as world:
            for name in "ab":
                world.say(Talk(name), name)
            world.rest_hot()
            world.disk.segments.capacity = world.disk.nbytes() + 5 * ROW
            talk = Talk("c")
            world.say(talk, "c")
            assert world.conductor.keeper.read_only is None
            assert world.telemetry.evictions
            world.kill()
            assert world.say(talk, "again").admitted.cached > 0

    def test_it_goes_on_read_only_where_eviction_does_not_help(self, world: World) -> None:
        world.disk.segments.capacity = 5 * ROW
        talk = Talk("ada")
        said = world.say(talk, "one")
        assert said.ended.problem is None
        assert str(world.conductor.keeper.read_only).startswith("no room on disk for")
        assert world.say(talk, "two").admitted.cached > 0

    def test_with_room_again_it_writes_again_and_all_that_it_could_not_write(
        self, world: World
    ) -> None:
        world.disk.segments.capacity = 5 * ROW
        ada, bob = Talk("ada"), Talk("bob", tenant="other")
        world.say(ada, "one")
        world.disk.segments.capacity = None
        world.say(bob, "two")
        assert world.conductor.keeper.read_only is None
        world.kill()
        assert world.say(ada, "three").admitted.cached > BEGINNING
        assert world.say(bob, "three").admitted.cached > BEGINNING

    def test_who_was_forgotten_while_nothing_could_be_written_stays_forgotten(
        self, world: World
    ) -> None:
        world.disk.segments.capacity = 5 * ROW
        world.say(Talk("ada"), "one")
        session = world.session("ada")
        assert session is not None
        world.conductor.keeper.forget(session.key)
        world.disk.segments.capacity = None
        world.say(Talk("bob"), "two")
        world.kill()
        assert world.names() == ["bob"]

    def test_rows_of_a_cancelled_turn_are_no_reason_to_stop(self, world: World) -> None:
        world.disk.segments.capacity = 5 * ROW
        talk = Talk("ada")
        said = world.begin(talk.ask("one", max_tokens=100))
        world.reach(said, TurnState.DECODING)
        world.cancel(said)
        world.settle()
        assert world.conductor.keeper.read_only is not None
        talk.take_back()
        world.disk.segments.capacity = None
        assert world.say(talk, "one").admitted.cached > 0
        world.kill()
        assert world.say(talk, "two").admitted.cached > TURN / 2

    def test_what_a_later_turn_replaced_is_not_written_again(self, world: World) -> None:
        """The write of the first turn fails while that of the second one waits behind it."""
        world.disk.fail("put", StoreFull(1))
        talk = Talk("ada")
        with world.disk.writes:
            for text in ("one", "two"):
                said = world.begin(talk.ask(text, max_tokens=4))
                while said.number in world.conductor.planner.turns:
                    world.step()
                talk.hear(said.text)
        world.settle()
        session = world.session("ada")
        assert session is not None
        assert session.generation == 2
        assert world.stored()[session.key] == session
        world.kill()
        assert world.say(talk, "three").admitted.cached > TURN

    def test_a_full_catalogue_is_a_full_disk(self, world: World) -> None:
        world.disk.fail("commit", repeat(StoreFull(10)))
        talk = Talk("ada")
        world.say(talk, "one")
        assert world.conductor.keeper.read_only == "no room on disk for 10 more bytes"
        world.disk.recover()
        world.say(talk, "two")
        assert world.conductor.keeper.read_only is None
        world.kill()
        session = world.session("ada")
        assert session is not None
        assert session.cursor is not None
        assert session.cursor.row > TURN

    def test_another_error_is_not_tried_again(self, world: World) -> None:
        world.disk.fail("put", OSError(5, "input/output error"))
        world.say(Talk("ada"), "one")
        assert world.conductor.keeper.read_only == "[Errno 5] input/output error"
        assert world.disk.written == []

    def test_an_agent_that_the_home_has_elsewhere_does_not_keep_it_from_evicting(
        self, world: World
    ) -> None:
        """The home has Ada where she stood before she said what there was no room for."""
        ada = Talk("ada")
        world.say(ada, "one")
        world.say(ada, "two, in more words than are said next")
        old = world.session("ada")
        assert old is not None
        assert old.cursor is not None
        ada.history.clear()
        world.disk.segments.capacity = world.disk.nbytes() + 5 * ROW
        world.say(ada, "not one")
        assert world.conductor.keeper.read_only is None
        assert old.cursor.key not in world.disk.segments._kept
        world.kill()
        assert world.say(ada, "two").admitted.cached > BEGINNING + 5

    def test_an_error_without_words_is_told_by_its_name(self, world: World) -> None:
        world.disk.fail("put", OSError())
        world.say(Talk("ada"), "one")
        assert world.conductor.keeper.read_only == "OSError"


class TestConflicts:
    def conflict(self, world: World, talk: Talk) -> bytes:
        """Somebody else takes the agent's last segment out of the catalogue."""
        session = world.session("ada")
        assert session is not None
        assert session.cursor is not None
        key = session.cursor.key
        put = evolve(world.stored()[session.key], cursor=None)
        world.disk.sessions.commit(Commit(drop=(key,), put=(put,)))
        return key

    def test_a_segment_that_the_catalogue_lost_is_written_again_from_ram(
        self, world: World
    ) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        lost = self.conflict(world, talk)
        world.say(talk, "two")
        assert [one.key for one in world.disk.written].count(lost) == 2
        assert world.conductor.keeper.read_only is None
        world.kill()
        assert world.say(talk, "three").admitted.cached > TURN

    def test_one_that_is_not_in_ram_either_is_gone(self, world: World) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        world.leave_warm()
        lost = self.conflict(world, talk)
        assert world.say(talk, "two").admitted.tier is Tier.HOT
        assert lost not in world.conductor.keeper.lineage
        assert len(world.telemetry.problems) == 1
        world.kill()
        assert world.say(talk, "three").admitted.miss is Miss.EVICTED

    def test_a_conflict_that_cannot_be_mended_is_told(self, world: World) -> None:
        world.disk.fail("commit", repeat(CatalogueConflict(b"b")))
        world.say(Talk("ada"), "one")
        assert world.conductor.keeper.read_only == "the catalogue does not hold segment 62"

    def test_what_the_home_refused_to_drop_is_counted_and_dropped_later(self, world: World) -> None:
        world.say(Talk("ada"), "one")
        (segment,) = world.segments(Tier.COLD)
        keeper, held = world.conductor.keeper, world.conductor.keeper.room.cold_bytes
        world.disk.fail("commit", OSError("not now"))
        keeper.tiers.discard([(segment, OSError())])
        world.settle()
        assert (keeper.room.cold_bytes, keeper.read_only) == (held, "not now")
        world.say(Talk("bob"), "two")
        world.settle()
        assert segment.key not in {one.key for one in world.disk.sessions.load().segments}
        assert keeper.read_only is None


class TestFewRows:
    """Rows that are too few to depend on others for are no fewer than any for their own agent."""

    def test_an_agent_that_says_its_last_words_anew_goes_on_right_before_them(self) -> None:
        with World(least_shared=64) as world:
            talk = Talk("ada", system="Be brief.")
            world.say(talk, "one")
            before = list(talk.history)
            first = world.say(talk, "two and some words that are taken back")
            talk.history[:] = before
            world.restart()
            again = world.say(talk, "two and other words")
            prompt, other = again.request.prompt.tokens, first.request.prompt.tokens
            agreed = common_prefix(prompt, 0, other, 0)
            assert again.admitted.cached == agreed


class TestWhatTheHomeFailedToDrop:
    """Rows that had to leave the home, and did not, because it could not be changed just then."""

    CAP = 2 * (FILE_OVERHEAD + TURN * ROW)

    def full(self) -> World:
        world = World(disk_cap=self.CAP)
        world.open()
        for name in "ab":
            world.say(Talk(name), name)
        return world

    def test_the_home_is_told_again_as_soon_as_it_takes_a_change(self) -> None:
        world = self.full()
        room, outbox = world.conductor.keeper.room, world.conductor.keeper.outbox
        world.disk.fail("commit", OSError("not now"))
        said = world.begin(Talk("c").ask("c", max_tokens=3))
        world.settle()
        world.check_answer(said)
        assert not outbox.dropping
        assert room.cold_bytes <= self.CAP
        assert world.disk.nbytes() == sum(one.nbytes for one in world.segments(Tier.COLD))
        world.check_drained()
        world.close()

    def test_nobody_else_has_to_leave_for_it(self) -> None:
        world = self.full()
        world.disk.fail("commit", [OSError("not now"), OSError("nor now")])
        world.say(Talk("c"), "c")
        assert world.conductor.keeper.outbox.dropping
        world.say(Talk("d"), "d")
        assert world.conductor.keeper.read_only is None
        assert len(world.segments(Tier.COLD)) == 2
        world.check_drained()
        world.close()
