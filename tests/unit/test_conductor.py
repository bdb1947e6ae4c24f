"""Turns from their prompt to their end."""

from collections.abc import Iterator
from itertools import pairwise

import pytest

from agentcache.adapters.memory.hash_model import hash_spec
from agentcache.adapters.memory.telemetry import TurnEnded
from agentcache.domain.errors import (
    InvalidRequest,
)
from agentcache.domain.events import Admitted, Delta, Ended
from agentcache.domain.notices import Limits
from agentcache.domain.request import Finish, Tier
from agentcache.domain.session import Session
from agentcache.domain.spans import concatenated
from agentcache.domain.turn import TurnState
from tests.talks import Said, Talk
from tests.world import World

SYSTEM = "You are an agent among others, and all of you have been told the same."
LONG = "many words " * 20


@pytest.fixture(params=[1, 2], ids=["one step in flight", "two steps in flight"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Small chunks, so that a prompt takes several steps."""
    with World(limits=Limits(chunk=16, busy_chunk=8), in_flight=request.param) as world:
        yield world


def one_place() -> World:
    return World(limits=Limits(batch=1, queue=1))


def session_of(world: World, name: str) -> Session:
    session = world.session(name)
    assert session is not None
    return session


def rows_of(session: Session) -> int:
    return session.cursor.row if session.cursor else 0


def passed(said: Said) -> int:
    """How many tokens must pass the model for a turn: those not cached, but not the last one."""
    return len(said.request.prompt) - said.admitted.cached + said.ended.completion - 1


class TestATurn:
    def test_it_is_told_in_order(self, world: World) -> None:
        said = world.say(Talk("ada"), "one")
        first, *deltas, last = said.events
        assert isinstance(first, Admitted)
        assert all(isinstance(one, Delta) for one in deltas)
        assert isinstance(last, Ended)
        assert sum(one.tokens for one in deltas if isinstance(one, Delta)) == last.completion == 6

    def test_every_token_passes_the_model_once(self, world: World) -> None:
        talk = Talk("ada", system=SYSTEM)
        turns = [world.say(talk, text) for text in ("one", "two", LONG, "four")]
        assert world.telemetry.tokens_forwarded == sum(map(passed, turns))
        assert all(said.admitted.cached > 0 for said in turns[1:])

    def test_an_answer_is_the_same_from_every_tier(self, world: World) -> None:
        talk, tiers = Talk("ada"), []
        for act in (lambda: None, lambda: None, world.restart, world.kill):
            act()
            tiers.append(world.say(talk, "and then?").admitted.tier)  # checked against the truth
        world.conductor.planner.hot.drop_resting()
        tiers.append(world.say(talk, "and now?").admitted.tier)
        assert tiers == [Tier.NONE, Tier.HOT, Tier.COLD, Tier.COLD, Tier.WARM]

    @pytest.mark.parametrize(
        "spec", [hash_spec(window=7), hash_spec(state=True), hash_spec(1, 40, True)]
    )
    @pytest.mark.parametrize("in_flight", [1, 2])
    def test_layers_of_every_kind_are_restored(self, spec: object, in_flight: int) -> None:
        with World(spec=spec, in_flight=in_flight, end_rate=0.1) as world:  # type: ignore[arg-type]
            talks = [Talk(name, system=SYSTEM) for name in "ab"]
            for text in ("one", "two", LONG, "four"):
                for talk in talks:
                    world.say(talk, text)
                world.restart()
            for talk in talks:
                assert world.say(talk, "five").admitted.cached > len(LONG) / 2
            assert not world.telemetry.problems

    def test_turns_at_once_are_answered_as_if_each_were_alone(self, world: World) -> None:
        turns = [
            world.begin(Talk(name, system=SYSTEM).ask(f"{name} {text}", max_tokens=9))
            for name, text in zip("abcdefgh", ("yes", LONG, "no", "why?") * 2, strict=True)
        ]
        world.settle()
        for said in turns:
            world.check_answer(said)

    def test_its_end_is_counted(self, world: World) -> None:
        said = world.begin(Talk("ada").ask("one", max_tokens=3))
        world.step()
        world.clock.advance(2)
        world.settle()
        assert said.over
        assert world.telemetry.ended == [TurnEnded(Finish.LENGTH, 3, 2.0)]

    def test_gauges_tell_what_is_there(self, world: World) -> None:
        world.say(Talk("ada"), "one")
        held = len(world.segments(Tier.COLD))
        levels = world.conductor.levels()
        assert levels["sessions"] == 1
        assert levels["hot_bytes"] == world.engine.held_bytes() > 0
        assert levels["warm_bytes"] == world.disk.nbytes() > 0
        assert levels["cold_bytes"] > world.disk.nbytes()
        assert (levels["queued"], levels["running"], held) == (0, 0, 1)

    def test_the_engine_rests_until_it_has_done_all_it_can(self, world: World) -> None:
        world.engine.chores = 5
        world.settle()
        assert world.engine.chores == 0

    def test_the_engine_does_not_rest_while_a_turn_is_there(self, world: World) -> None:
        said = world.begin(Talk("ada").ask("one", max_tokens=9))
        world.engine.chores = 5
        world.reach(said, TurnState.DECODING)
        world.step()
        assert world.engine.chores == 5
        world.settle()
        assert world.engine.chores == 0
        world.check_answer(said)

    def test_a_model_runs_at_most_so_many_turns_at_once(self) -> None:
        with World(limits=Limits(batch=2)) as world:
            for name in "abc":
                world.begin(Talk(name).ask(name, max_tokens=20))
            world.step()
            assert (world.conductor.levels()["running"], world.conductor.levels()["queued"]) == (
                2,
                1,
            )


class TestItsEnd:
    def test_the_end_token_is_no_text(self) -> None:
        with World(end_rate=1.0) as world:
            said = world.say(Talk("ada"), "one")
            assert said.events[1:] == [Delta("", 1), Ended(Finish.STOP, said.ended.prompt, 0, 1)]

    def test_a_conversation_goes_on_after_end_tokens_without_running_anything_twice(self) -> None:
        with World(end_rate=0.2) as world:
            talk = Talk("ada")
            turns = [world.say(talk, f"question {n}", max_tokens=30) for n in range(6)]
            ended = [said for said in turns if said.ended.finish is Finish.STOP]
            assert len(ended) > 3
            assert world.telemetry.tokens_forwarded == sum(map(passed, turns))
            for before, said in pairwise(turns):
                heard = len(before.request.prompt) + before.ended.completion - 1
                assert said.admitted.cached == heard

    def test_a_stop_sequence_is_not_said(self, world: World) -> None:
        whole = world.say(Talk("ada"), "one", max_tokens=12)
        stop = whole.text[5:7]
        said = world.say(Talk("bob"), "one", max_tokens=12, stop=("never said", stop))
        assert said.text == whole.text[: whole.text.index(stop)]
        assert said.ended.stop == stop
        assert said.ended.finish is Finish.STOP

    def test_a_conversation_goes_on_from_the_ids_before_a_stop_sequence(self, world: World) -> None:
        stop = world.say(Talk("ada"), "one", max_tokens=12).text[7:9]
        talk = Talk("bob")
        before = world.say(talk, "one", max_tokens=12, stop=(stop,))
        session = session_of(world, "bob")
        sampled = world.engine.expected_tokens(
            before.request.prompt.tokens, before.ended.completion, before.request.sampling
        )
        kept = rows_of(session) - len(before.request.prompt)
        known = concatenated(session.spans)
        assert 0 < kept < before.ended.completion
        assert list(known[len(before.request.prompt) :][:kept]) == sampled[:kept]
        forwarded = world.telemetry.tokens_forwarded
        said = world.say(talk, "two")
        assert said.request.prompt.tokens[: len(known)] == known
        assert said.admitted.cached == rows_of(session)
        assert world.telemetry.tokens_forwarded - forwarded == passed(said)

    def test_what_may_be_a_stop_sequence_is_held_back_until_the_end(self, world: World) -> None:
        whole = world.say(Talk("ada"), "one", max_tokens=4)
        said = world.say(Talk("bob"), "one", max_tokens=4, stop=(f"{whole.text[-2:]}...",))
        assert said.text == whole.text
        assert said.ended.finish is Finish.LENGTH

    def test_a_character_that_was_cut_by_max_tokens_is_left_out(self, world: World) -> None:
        texts = (f"question {n}" for n in range(1000))
        text = next(one for one in texts if _starts_a_character(world, one))
        talk = Talk("ada")
        said = world.say(talk, text, max_tokens=1)
        assert said.events[1:] == [Delta("", 1), Ended(Finish.LENGTH, said.ended.prompt, 0, 1)]
        assert world.say(talk, "two").admitted.cached == len(said.request.prompt)

    def test_an_empty_stop_sequence_is_refused_and_leaves_nothing_behind(
        self, world: World
    ) -> None:
        with pytest.raises(InvalidRequest):
            world.begin(Talk("ada").ask("one", stop=("",)))
        assert not world.step()


def _starts_a_character(world: World, text: str) -> bool:
    """Whether the answer to `text` begins with the first byte of a longer character."""
    ask = Talk("nobody").ask(text)
    prompt = world.conductor.builder.build(ask.conversation)
    (first,) = world.engine.expected_tokens(prompt.tokens, 1, ask.sampling)
    return 0xC3 <= first <= 0xF3


class TestDurability:
    def test_a_turn_ends_after_its_commit(self, world: World) -> None:
        with world.disk.writes:
            said = world.begin(Talk("ada").ask("one", max_tokens=4))
            while said.number in world.conductor.planner.turns:
                world.step()
            assert not said.over
            assert world.stored() == {}
        while not said.over:
            world.step()
        assert [key.name for key in world.stored()] == ["ada"]

    def test_behind_it_ends_before(self) -> None:
        with World(durable=False) as world:
            with world.disk.writes:
                said = world.begin(Talk("ada").ask("one", max_tokens=4))
                while said.number in world.conductor.planner.turns:
                    world.step()
                assert said.ended.completion == 4
                assert world.stored() == {}
            world.settle()
            assert [key.name for key in world.stored()] == ["ada"]

    def test_its_place_is_free_while_it_is_written(self) -> None:
        with one_place() as world:
            with world.disk.writes:
                first = world.begin(Talk("ada").ask("one", max_tokens=2))
                while world.conductor.planner.turns:
                    world.step()
                assert not first.over
                other = world.begin(Talk("bob").ask("one", max_tokens=2))
                while world.conductor.planner.turns:
                    world.step()
                assert other.admitted.prompt
            world.settle()

    def test_every_turn_that_ended_is_found_after_a_kill(self, world: World) -> None:
        talks = [Talk(name, system=SYSTEM) for name in "abc"]
        for number, text in enumerate(("one", "two", "three")):
            for talk in talks:
                said = world.say(talk, f"{talk.name} {text}")
                assert (said.admitted.cached > 60) == (number > 0), said.admitted
            world.kill()

    def test_a_turn_that_was_killed_before_its_commit_never_was(self, world: World) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        known = session_of(world, "ada")
        world.disk.writes.acquire()
        said = world.begin(talk.ask("two", max_tokens=4))
        while said.number in world.conductor.planner.turns:
            world.step()
        world.disk.lose_power()
        world.disk.writes.release()
        world.kill()
        assert session_of(world, "ada") == known
        talk.take_back()
        assert world.say(talk, "two again").admitted.cached == rows_of(known)


class TestStoringNothing:
    def test_nothing_is_left_anywhere(self, world: World) -> None:
        said = world.say(Talk("ada", system=SYSTEM), LONG, store=False)
        assert said.ended.completion == 6
        assert (world.names(), world.stored(), world.disk.nbytes()) == ([], {}, 0)
        assert world.conductor.keeper.tiers.warm == {}
        assert not world.codec.encoded
        world.step()
        assert world.engine.held_bytes() == 0

    def test_what_is_there_is_used_and_stays_as_it_is(self, world: World) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        known, nbytes = session_of(world, "ada"), world.disk.nbytes()
        assert world.say(talk, "two", store=False).admitted.cached == rows_of(known)
        assert (session_of(world, "ada"), world.disk.nbytes()) == (known, nbytes)

    def test_one_that_is_cancelled_leaves_nothing_either(self, world: World) -> None:
        said = world.begin(Talk("ada").ask(LONG, store=False))
        world.reach(said, TurnState.DECODING)
        world.cancel(said)
        world.settle()
        assert world.conductor.keeper.tiers.warm == {}
        assert world.disk.nbytes() == 0
