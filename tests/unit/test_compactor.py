"""Chains are made short in the background: nothing is lost, nothing computed or encoded again."""

from collections.abc import Iterator

import pytest
from attrs import evolve

from agentcache.adapters.memory.hash_model import hash_spec
from agentcache.adapters.memory.segment_store import MemorySegmentStore
from agentcache.compactor import Compactor
from agentcache.domain.compaction import MOST_SMALL, SMALL_AT_ONCE
from agentcache.domain.errors import StoreFull
from agentcache.domain.request import Miss, Tier
from agentcache.domain.segment import Segment
from agentcache.domain.spec import CacheSpec
from agentcache.outbox import FILE_OVERHEAD
from agentcache.ports.payload import Payload
from tests.frail import Disk
from tests.talks import Talk
from tests.world import World

TURNS = 40
FULL, WINDOW, STATE = hash_spec(), hash_spec(window=16), hash_spec(state=True)
SPECS = {"full": FULL, "window": WINDOW, "state": STATE, "both": hash_spec(1, 40, True)}


class Peak(MemorySegmentStore):
    """Knows how much it ever held, a file's own overhead among it."""

    peak = 0

    def put(self, segment: Segment, payload: Payload) -> int:
        taken = super().put(segment, payload)
        self.peak = max(self.peak, self.nbytes() + FILE_OVERHEAD * len(self._kept))
        return taken


def made(spec: CacheSpec = FULL, disk_cap: int = 1 << 30, least_shared: int = 1) -> World:
    return World(
        spec=spec, blocks=256, context=60_000, disk_cap=disk_cap, least_shared=least_shared
    )


@pytest.fixture
def world() -> Iterator[World]:
    with made() as world:
        yield world


def chat(world: World, talk: Talk, turns: int = TURNS) -> None:
    for number in range(turns):
        world.say(talk, f"turn {number}")


def chain(world: World, name: str = "ada") -> list[Segment]:
    """The segments that the agent's conversation is kept in."""
    session = world.session(name)
    assert session is not None
    assert session.cursor is not None
    return [step.segment for step in world.conductor.keeper.lineage.path(session.cursor).steps]


def states(world: World, segments: list[Segment]) -> int:
    """How many of the segments hold a checkpoint of the state layers."""
    payloads = [world.disk.segments.read(one) for one in segments]
    return sum(any(name.startswith("s") for name in one.tensors) for one in payloads)


class TestMerging:
    @pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
    def test_a_long_conversation_is_a_short_chain_and_all_there_after_a_restart(
        self, spec: CacheSpec
    ) -> None:
        with made(spec) as world:
            talk = Talk("ada")
            chat(world, talk)
            kept = chain(world)[-1].stop
            assert len(chain(world)) < MOST_SMALL
            assert world.telemetry.compactions
            world.restart()
            world.conductor.check_integrity()
            assert world.say(talk, "and now?").admitted.cached == kept

    @pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
    def test_the_home_holds_what_is_known_and_nothing_else(self, spec: CacheSpec) -> None:
        with made(spec) as world:
            chat(world, Talk("ada"))
            world.check_home()
            cold = {one.key for one in world.segments(Tier.COLD)}
            assert world.disk.segments._kept.keys() == cold

    def test_nothing_is_computed_or_encoded_for_it(self, world: World) -> None:
        chat(world, Talk("ada"))
        spans = sorted(world.codec.encoded)
        assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]
        assert world.telemetry.tokens_forwarded == spans[-1][1]

    def test_what_is_written_again_is_told_and_bounded(self, world: World) -> None:
        chat(world, Talk("ada"), 100)
        again = sum(nbytes for _, nbytes in world.telemetry.compactions)
        assert 0 < again <= 4 * world.telemetry.bytes_stored
        put = sum(one.nbytes for one in world.disk.written)
        assert put == world.telemetry.bytes_stored + again

    def test_a_merged_segment_is_the_bytes_of_its_parts(self, world: World) -> None:
        talk = Talk("ada")
        chat(world, talk)
        world.go_cold()
        answer = world.say(talk, "what did I say first?")  # it is checked to be right
        assert answer.admitted.tier is Tier.COLD
        assert answer.admitted.miss is Miss.NONE

    def test_merged_segments_stay_in_ram_if_their_parts_were(self, world: World) -> None:
        talk = Talk("ada")
        chat(world, talk)
        world.rest_hot()
        assert world.say(talk, "again").admitted.tier is Tier.WARM

    def test_what_left_ram_is_read_to_be_merged_and_stays_out_of_it(self, world: World) -> None:
        talk = Talk("ada")
        world.conductor.keeper.tiers.warm_cap = 0
        chat(world, talk)
        assert world.telemetry.compactions
        assert world.conductor.keeper.tiers.warm == {}

    def test_a_fork_goes_on_from_within_a_merged_segment(self, world: World) -> None:
        talk = Talk("ada")
        chat(world, talk, 6)
        fork = Talk("bob", history=list(talk.history))
        chat(world, talk)
        said = world.say(fork, "now I")
        assert said.admitted.cached > len(said.request.prompt) - 30

    def test_forks_stay_where_they_left_a_chain_that_is_merged_under_them(self) -> None:
        with made(least_shared=64) as world:
            talk = Talk("ada")
            forks = []
            for number in range(SMALL_AT_ONCE + 2):
                world.say(talk, f"turn {number}")
                forks.append(Talk(f"fork{number}", history=list(talk.history)))
                world.say(forks[-1], "I go another way")
            assert len(chain(world)) < SMALL_AT_ONCE
            world.restart()
            for fork in forks:
                said = world.say(fork, "still here?")
                assert said.admitted.cached > len(said.request.prompt) - 30

    def test_pins_follow_their_rows(self, world: World) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        session = world.session("ada")
        assert session is not None
        world.conductor.keeper.tiers.place(evolve(session, pinned=True))
        chat(world, talk)
        assert world.telemetry.compactions
        keeper = world.conductor.keeper
        assert keeper.tiers.pins.paths[session.key] == tuple(one.key for one in chain(world))
        keeper.room.cap, cap = 0, keeper.room.cap
        keeper.room.make(0)
        assert chain(world)
        keeper.room.cap = cap

    def test_a_merged_chain_is_merged_again(self, world: World) -> None:
        talk = Talk("ada")
        chat(world, talk, 2 * TURNS)
        before = len(world.telemetry.compactions)
        world.restart()
        chat(world, talk, TURNS)
        assert len(world.telemetry.compactions) > before
        assert len(chain(world)) < MOST_SMALL


class TestCheckpoints:
    def test_few_checkpoints_are_kept_and_the_newest_two_always(self) -> None:
        with made(STATE) as world:
            talk = Talk("ada")
            chat(world, talk)
            path = chain(world)
            assert states(world, path) == len(path) <= 12
            assert len(path[-1]) < 30
            assert len(path[-2]) < 30
            assert max(map(len, path)) > len(path[-1].ids) * 10

    def test_the_bytes_on_disk_are_those_of_the_rows_and_of_the_checkpoints_left(self) -> None:
        with made(STATE) as world:
            chat(world, Talk("ada"))
            path = chain(world)
            rows = path[-1].stop * STATE.row_bytes
            assert world.disk.nbytes() == rows + len(path) * STATE.state_bytes

    def test_of_windows_only_the_rows_before_the_ends_that_are_left_stay_on_disk(self) -> None:
        with made(WINDOW) as world:
            chat(world, Talk("ada"))
            path = chain(world)
            windows = sum(min(16, len(one)) for one in path) * WINDOW.window_row_bytes
            full = path[-1].stop * WINDOW.row_bytes
            assert sum(one.nbytes for one in path) == full + windows
            assert windows < path[-1].stop * WINDOW.window_row_bytes / 4

    def test_it_waits_until_no_turn_runs(self) -> None:
        with made(STATE) as world:
            talk, other = Talk("ada"), Talk("bob")
            said = world.begin(other.ask("much", max_tokens=400))
            for number in range(4):
                turn = world.begin(talk.ask(f"turn {number}", max_tokens=4))
                while not turn.over:
                    world.step()
                talk.hear(turn.text)
            assert not said.over
            assert not world.telemetry.compactions
            world.settle()
            assert world.telemetry.compactions

    def test_a_checkpoint_that_a_fork_stands_on_stays(self) -> None:
        with made(STATE) as world:
            talk = Talk("ada")
            chat(world, talk, 6)
            then = list(talk.history)
            before = world.say(Talk("bob", history=list(then)), "me too")
            chat(world, talk)
            assert world.telemetry.compactions
            world.rest_hot()
            said = world.say(Talk("eve", history=list(then)), "me too")
            assert said.admitted.cached >= before.admitted.cached > 100


def until_merging(world: World, talk: Talk) -> int:
    """Go on with the conversation until something is being merged; return what is kept of it."""
    for _ in range(2 * SMALL_AT_ONCE):
        said = world.begin(talk.ask("more", max_tokens=4))
        while not said.over:
            world.step()
        talk.hear(said.text)
        while world.conductor.keeper.is_writing and not world.conductor.compactor._busy:
            world.step()
        world.conductor.round()
        if world.conductor.compactor._busy:
            return chain(world)[-1].stop
    raise AssertionError("nothing is merged")


class TestTrouble:
    @pytest.mark.parametrize("spec", [FULL, STATE], ids=["full", "state"])
    @pytest.mark.parametrize("after", range(4))
    def test_a_process_that_is_killed_while_merging_has_what_was_told(
        self, spec: CacheSpec, after: int
    ) -> None:
        with made(spec) as world:
            talk = Talk("ada")
            kept = until_merging(world, talk)
            for _ in range(after):
                world.step()
            world.kill()
            world.conductor.check_integrity()
            assert world.say(talk, "still there?").admitted.cached == kept
            world.settle()
            world.check_home()

    @pytest.mark.parametrize("problem", [OSError("not now"), StoreFull(1)])
    def test_a_merge_that_cannot_be_written_changes_nothing(
        self, world: World, problem: Exception
    ) -> None:
        talk = Talk("ada")
        kept = until_merging(world, talk)
        keys = [one.key for one in chain(world)]
        world.disk.fail("put", problem)
        world.settle()
        assert not world.telemetry.compactions
        assert [one.key for one in chain(world)] == keys
        assert world.conductor.keeper.read_only is None
        world.rest_hot()
        assert world.say(talk, "still there?").admitted.cached == kept
        assert world.telemetry.compactions  # the next turn tries again

    @pytest.mark.parametrize("killed", [False, True])
    def test_a_merge_that_the_catalogue_does_not_take_is_told_with_the_next_change(
        self, world: World, killed: bool
    ) -> None:
        talk = Talk("ada")
        kept = until_merging(world, talk)
        world.disk.fail("commit", OSError("not now"))
        world.settle()
        assert world.telemetry.compactions
        assert world.conductor.keeper.outbox.dropping
        if killed:
            world.kill()
        assert world.say(talk, "still there?").admitted.cached == kept
        world.settle()
        world.check_home()

    def test_a_turn_goes_on_from_what_the_home_was_not_told_yet(self, world: World) -> None:
        talk = Talk("ada")
        until_merging(world, talk)
        world.settle()
        kept = chain(world)[-1].stop
        world.conductor.keeper.outbox.adopt(chain(world)[-1:])
        assert world.say(talk, "still there?").admitted.cached == kept
        world.restart()
        assert world.session("ada") is not None

    @pytest.mark.parametrize("times", range(1, 6))
    def test_a_merge_that_the_home_could_not_be_told_of_is_not_taken_for_lost(
        self, world: World, times: int
    ) -> None:
        talk = Talk("ada")
        world.conductor.keeper.tiers.warm_cap = 0  # nothing could be written again from RAM
        until_merging(world, talk)
        world.disk.fail("commit", [OSError("not now")] * times)
        world.settle()
        assert world.telemetry.compactions
        before = chain(world)[-1].stop
        assert world.say(talk, "still there?").admitted.cached == before
        world.disk.recover()
        before = chain(world)[-1].stop
        assert world.say(talk, "still there?").admitted.cached >= before
        assert not world.telemetry.problems
        world.restart()
        assert world.say(talk, "and now?").admitted.cached > before

    def test_what_is_used_while_it_is_merged_is_left_alone(self, world: World) -> None:
        talk = Talk("ada")
        until_merging(world, talk)
        path = tuple(one.key for one in chain(world))
        world.conductor.keeper.lineage.hold(path)
        world.settle()
        assert tuple(one.key for one in chain(world)) == path
        world.check_home()
        world.conductor.keeper.lineage.release(path)

    def test_an_agent_that_is_forgotten_while_it_is_merged_is_gone(self, world: World) -> None:
        talk = Talk("ada")
        until_merging(world, talk)
        session = world.session("ada")
        assert session is not None
        world.conductor.keeper.forget(session.key)
        world.settle()
        assert world.stored() == {}
        world.check_home()

    def test_nothing_is_merged_that_has_no_room_for_a_second_copy(self) -> None:
        rows = 64
        with made(disk_cap=20 * FILE_OVERHEAD + 500 * rows) as world:
            chat(world, Talk("ada"))
            assert world.conductor.keeper.room.cold_bytes <= world.disk_cap
            assert world.disk.nbytes() <= world.disk_cap

    def test_the_disk_cap_counts_the_second_copy_while_there_is_one(self) -> None:
        store = Peak()
        with evolve(made(), disk=Disk(store), steady=True) as world:
            until_merging(world, Talk("ada"))
            world.wait()
            world._inbox.run()  # it is put together, and about to be written
            room = world.conductor.keeper.room
            second = room.tiers.outbox.coming_bytes
            assert second
            room.cap = room.cold_bytes + second + 1
            said = world.begin(Talk("bob", tenant="other").ask("Me, too.", max_tokens=4))
            while said.number in world.conductor.planner.turns:
                world.conductor.round()
            world.settle()
            assert store.peak <= room.cap
            assert world.session("bob", "other") is not None

    def test_a_segment_that_cannot_be_read_is_left_for_a_turn_to_find(self, world: World) -> None:
        talk = Talk("ada")
        chat(world, talk, 3)
        world.go_cold()
        world.disk.fail("read", [OSError("bad")] * 20)
        world.disk.recover()
        world.disk.segments.damage(chain(world)[1].key)
        chat(world, talk)
        assert len(world.telemetry.problems) <= 1
        world.check_home()

    @pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
    def test_a_merge_that_would_break_the_tree_is_given_up_and_turns_go_on(
        self, spec: CacheSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with made(spec) as world:
            talk = Talk("ada")
            until_merging(world, talk)
            monkeypatch.setattr(Compactor, "_is_still_there", lambda *_: True)
            session = world.session("ada")
            assert session is not None
            world.conductor.keeper.forget(session.key)
            world.settle()
            world.conductor.check_integrity()
            assert "could not be merged" in caplog.text
            assert not world.telemetry.compactions
            world.say(talk, "still there?")
            world.check_home()

    def test_at_the_end_nothing_is_begun_any_more(self, world: World) -> None:
        world.conductor.compactor.rest()
        chat(world, Talk("ada"))
        assert not world.telemetry.compactions
