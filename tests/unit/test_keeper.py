"""What is kept outside the engine: once, within the caps, and for good where that was promised."""

from collections.abc import Callable, Iterator
from itertools import repeat

import pytest
from attrs import evolve

from agentcache.domain.errors import CatalogueConflict, IntegrityError, StoreFull
from agentcache.domain.request import Miss, Tier
from agentcache.domain.session import Cursor, SessionKey
from agentcache.domain.turn import TurnState
from agentcache.keeper import FILE_OVERHEAD
from agentcache.ports.session_store import Commit
from tests.world import Disk, Said, Talk, World

SYSTEM = "You are an agent among others, and all of you have been told the same."
ROW = 2 * (8 + 4) * 4  # bytes: two layers, keys and values, float32
TURN = 30  # tokens of a short turn, at most
BEGINNING = 4  # tokens that all conversations begin with


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


def forwarded(world: World, act: Callable[[], Said]) -> tuple[Said, int]:
    """What `act` said, and how many tokens were passed to the model for it."""
    before = world.telemetry.tokens_forwarded
    said = act()
    return said, world.telemetry.tokens_forwarded - before


def rest_hot(world: World) -> None:
    """Let every resting sequence go, so that the next turns start from warm or cold."""
    world.conductor.planner.hot.drop_resting()


def leave_warm(world: World) -> None:
    """Let every segment leave RAM that is in the home."""
    keeper = world.conductor.keeper
    cap, keeper.warm_cap = keeper.warm_cap, 0
    keeper.trim()
    keeper.warm_cap = cap


def go_cold(world: World) -> None:
    """Let everything leave RAM."""
    rest_hot(world)
    leave_warm(world)


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


class TestTiers:
    def test_what_left_ram_is_read_again_and_stays_there(self, world: World) -> None:
        talk = Talk("ada", system=SYSTEM)
        world.say(talk, "one")
        go_cold(world)
        assert world.conductor.keeper.warm == {}
        assert world.say(talk, "two").admitted.tier is Tier.COLD
        rest_hot(world)
        assert world.say(talk, "three").admitted.tier is Tier.WARM

    def test_the_warm_cap_holds_after_every_turn(self, world: World) -> None:
        keeper = world.conductor.keeper
        keeper.warm_cap = 2 * TURN * ROW
        talks = [Talk(name) for name in "abcd"]
        for text in ("one", "two", "three"):
            for talk in talks:
                world.say(talk, text)
                assert keeper.lineage.nbytes(Tier.WARM) <= keeper.warm_cap
        assert {tier for tier, _, _ in world.telemetry.evictions} == {Tier.WARM}
        world.restart()
        assert all(world.say(talk, "four").admitted.cached > 0 for talk in talks)

    def test_the_warm_cap_holds_after_a_turn_that_leaves_nothing_behind(self, world: World) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        go_cold(world)
        world.conductor.keeper.warm_cap = 0
        assert world.say(talk, "two", store=False).admitted.tier is Tier.COLD
        assert world.conductor.keeper.warm == {}

    def test_the_disk_cap_holds_after_every_turn(self) -> None:
        with World(disk_cap=4 * (FILE_OVERHEAD + TURN * ROW)) as world:
            keeper = world.conductor.keeper
            for text in ("one", "two"):
                for name in "abcdef":
                    world.say(Talk(name), f"{name} {text}")
                    assert keeper.cold_bytes <= keeper.cold_cap
                    assert world.disk.nbytes() <= keeper.cold_cap
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
            assert world.conductor.keeper.cold_bytes <= world.disk_cap

    def test_a_home_is_brought_within_a_smaller_cap_when_it_is_opened(self, world: World) -> None:
        for name in "abcd":
            world.say(Talk(name), name)
        world.disk_cap = 2 * (FILE_OVERHEAD + TURN * ROW)
        world.restart()
        assert world.conductor.keeper.cold_bytes <= world.disk_cap
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
            world.say(Talk("bob"), "many words " * 60)
            keeper = world.conductor.keeper
            assert not world.telemetry.evictions
            assert keeper.read_only is not None
            assert "disk cap" in keeper.read_only
            stored = {key.name: one.cursor for key, one in world.stored().items()}
            assert stored["bob"] == Cursor(stored["ada"].key, BEGINNING)


class TestEviction:
    def shrink(self, world: World, segments: int) -> None:
        """Let the home have room for so many of the segments it holds."""
        rest_hot(world)
        keeper = world.conductor.keeper
        sizes = sorted(one.nbytes + FILE_OVERHEAD for one in world.segments(Tier.COLD))
        keeper.cold_cap = sum(sizes[-segments:]) if segments else 0
        keeper._make_room(0)
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
        world.conductor.keeper.cold_cap = world.disk_cap
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
        keeper.cold_cap = world.disk_cap
        world.restart()
        assert world.holds() == 1
        assert world.say(talks[0], "two").admitted.cached > 0
        assert world.holds() == 2  # the pin followed the cursor
        world.conductor.keeper.forget(session.key)
        assert world.holds() == 0

    def test_what_is_being_restored_is_not_evicted(self, world: World) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        go_cold(world)
        with world.disk.reads:
            said = world.begin(talk.ask("two", max_tokens=5))
            world.reach(said, TurnState.FETCHING)
            world.conductor.keeper.cold_cap = world.conductor.keeper.warm_cap = 0
            world.conductor.keeper._make_room(0)
            assert len(world.segments(Tier.COLD)) == 1
            world.conductor.keeper.cold_cap = world.disk_cap
        world.settle()
        world.check_answer(said)
        assert said.admitted.cached > 0

    def test_what_two_turns_restore_at_once_is_taken_in_once(self, world: World) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        go_cold(world)
        keeper = world.conductor.keeper
        keeper.warm_cap = 0
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
        assert keeper.warm == {}

    def test_rows_that_were_never_written_go_when_ram_is_needed(self, world: World) -> None:
        world.disk.fail("put", repeat(OSError("broken")))
        world.conductor.keeper.warm_cap = TURN * ROW
        for name in "abc":
            world.say(Talk(name, tenant=name), name)
        assert len(world.conductor.keeper.warm) == 1
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
        go_cold(world)
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
        rest_hot(world)
        warm = world.conductor.keeper._warm
        (key,) = warm
        warm[key] = evolve(warm[key], codec="another")
        said = world.say(talk, "two")
        assert (said.admitted.cached, said.admitted.miss) == (0, Miss.CORRUPT)
        assert len(world.telemetry.problems) == 1

    def test_every_bad_segment_is_counted(self, world: World) -> None:
        talk = Talk("ada")
        for text in ("one", "two"):
            world.say(talk, text)
        go_cold(world)
        for one in world.segments(Tier.COLD):
            world.disk.segments.damage(one.key)
        assert world.say(talk, "three").admitted.miss is Miss.CORRUPT
        assert len(world.telemetry.problems) == 2

    def test_others_go_on_from_what_is_sound(self, world: World) -> None:
        ada, bob = Talk("ada", system=SYSTEM), Talk("bob", system=SYSTEM)
        world.say(ada, "I am Ada.")
        world.say(bob, "My name is Bob.")
        go_cold(world)
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
        go_cold(world)
        (parent,) = world.segments(Tier.COLD)
        world.disk.segments.damage(parent.key)
        with world.disk.writes:
            ask = talk.ask("two", max_tokens=4)
            world.conductor.keeper.discard([(parent, OSError())])
            said = world.begin(ask)  # makes the same segment anew, before the old one is dropped
            while said.number in world.conductor.planner.turns:
                world.step()
            made = list(world.conductor.keeper._writing.values())
            world.conductor.keeper.discard([(made[0], OSError())])
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
            rest_hot(world)
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
        ada, bob = Talk("ada"), Talk("bob")
        world.say(ada, "one")
        world.disk.segments.capacity = None
        world.say(bob, "two")
        assert world.conductor.keeper.read_only is None
        world.kill()
        assert world.say(ada, "three").admitted.cached > 0
        assert world.say(bob, "three").admitted.cached > 0

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
        leave_warm(world)
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
        keeper, held = world.conductor.keeper, world.conductor.keeper.cold_bytes
        world.disk.fail("commit", OSError("not now"))
        keeper.discard([(segment, OSError())])
        world.settle()
        assert (keeper.cold_bytes, keeper.read_only) == (held, "not now")
        world.say(Talk("bob"), "two")
        world.settle()
        assert segment.key not in {one.key for one in world.disk.sessions.load().segments}
        assert keeper.read_only is None


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
        cap, keeper.cold_cap = keeper.cold_cap, 0
        keeper._make_room(0)
        world.settle()
        assert world.stored() == {}
        assert world.disk.nbytes() == 0
        keeper.cold_cap = cap

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
        warm = world.conductor.keeper._warm
        key, payload = warm.popitem()
        with pytest.raises(IntegrityError, match="payloads"):
            world.conductor.check_integrity()
        warm[key] = payload

    def test_what_is_being_written_must_be_in_ram(self, world: World) -> None:
        world.say(Talk("ada"), "one")
        (segment,) = world.segments(Tier.COLD)
        leave_warm(world)
        world.conductor.keeper._writing[segment.key] = segment
        with pytest.raises(IntegrityError, match="being written"):
            world.conductor.check_integrity()
        world.conductor.keeper._writing.clear()

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
