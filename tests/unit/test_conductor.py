"""Turns from their prompt to their end, whatever happens in between."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
from attrs import evolve

from agentcache.adapters.memory.hash_model import hash_spec
from agentcache.adapters.memory.telemetry import TurnEnded
from agentcache.domain.errors import (
    InvalidRequest,
    Overloaded,
    PromptTooLong,
    TurnCancelled,
    Unavailable,
)
from agentcache.domain.events import Admitted, Delta, Ended
from agentcache.domain.notices import Limits
from agentcache.domain.request import Finish, Miss, Tier
from agentcache.domain.session import Session
from agentcache.domain.spans import concatenated
from agentcache.domain.turn import TurnState
from tests.world import Said, Talk, World

SYSTEM = "You are an agent among others, and all of you have been told the same."
LONG = "many words " * 20
TOOLS = ({"type": "function", "function": {"name": "search"}},)


@pytest.fixture(params=[1, 2], ids=["one step in flight", "two steps in flight"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Small chunks, so that a prompt takes several steps."""
    with World(limits=Limits(chunk=16, busy_chunk=8), in_flight=request.param) as world:
        yield world


@pytest.fixture(params=[1, 2], ids=["one step in flight", "two steps in flight"])
def narrow(request: pytest.FixtureRequest) -> Iterator[World]:
    """Two blocks, for two sequences of at most 256 tokens, or for one."""
    limits = Limits(batch=2, reserve=1)
    with World(limits=limits, blocks=2, in_flight=request.param) as world:
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
        assert world.conductor.keeper.warm == {}
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
        assert world.conductor.keeper.warm == {}
        assert world.disk.nbytes() == 0


class TestCancelling:
    def free(self, world: World, said: Said) -> None:
        """Within the steps that are under way, the turn has given its place back."""
        world.cancel(said)
        for _ in range(world.in_flight + 1):
            world.step()
        assert world.conductor.planner.running == 0

    def test_a_waiting_turn_is_refused(self) -> None:
        with one_place() as world:
            first = world.begin(Talk("ada").ask("one", max_tokens=30))
            world.step()
            second = world.begin(Talk("bob").ask("two"))
            world.cancel(second)
            world.step()
            assert isinstance(second.error, TurnCancelled)
            world.settle()
            world.check_answer(first)

    def test_while_it_is_being_restored(self, world: World) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        world.restart()
        with world.disk.reads:
            said = world.begin(talk.ask("two"))
            world.reach(said, TurnState.FETCHING)
            world.cancel(said)
            assert world.conductor.planner.running == 1  # its rows are being written to
        world.settle()
        assert isinstance(said.error, TurnCancelled)
        assert world.holds() == 0
        talk.take_back()
        assert world.say(talk, "two").admitted.cached > 0

    def test_while_its_prompt_is_run(self, world: World) -> None:
        said = world.begin(Talk("ada").ask(LONG))
        world.reach(said, TurnState.PREFILLING)
        for _ in range(6):
            world.step()
        self.free(world, said)
        assert said.ended.finish is Finish.CANCELLED
        assert said.text == ""

    def test_while_it_speaks(self, world: World) -> None:
        said = world.begin(Talk("ada").ask("one", max_tokens=100))
        while not said.text:
            world.step()
        self.free(world, said)
        assert said.ended.finish is Finish.CANCELLED
        assert 0 < said.ended.completion < 100

    def test_what_it_computed_is_not_computed_again(self, world: World) -> None:
        talk = Talk("ada", system=SYSTEM)
        cancelled = world.begin(talk.ask(LONG, max_tokens=8))
        while world.telemetry.tokens_forwarded < 70:
            world.step()
        world.cancel(cancelled)
        world.settle()
        computed = world.telemetry.tokens_forwarded
        assert computed < len(cancelled.request.prompt)
        talk.take_back()
        said = world.say(talk, LONG, max_tokens=8)
        assert said.admitted.cached == computed
        assert world.telemetry.tokens_forwarded == computed + passed(said)

    @pytest.mark.parametrize("then", ["restart", "kill"])
    def test_what_it_computed_is_found_after_a_restart(self, world: World, then: str) -> None:
        talk = Talk("ada")
        said = world.begin(talk.ask(LONG))
        world.reach(said, TurnState.DECODING)
        world.cancel(said)
        world.settle()
        getattr(world, then)()
        talk.take_back()
        assert world.say(talk, LONG).admitted.cached == len(said.request.prompt) - 1

    @pytest.mark.parametrize("name", ["ada", None])
    def test_its_retry_goes_on_with_the_same_sequence(self, world: World, name: str | None) -> None:
        talk = Talk(name)
        world.say(talk, "one")
        said = world.begin(talk.ask(LONG))
        world.reach(said, TurnState.DECODING)
        world.cancel(said)
        world.settle()
        talk.take_back()
        again = world.say(talk, LONG)
        assert (again.admitted.tier, again.admitted.cached) == (
            Tier.HOT,
            len(said.request.prompt) - 1,
        )

    def test_it_leaves_its_agent_as_it_was(self, world: World) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        known = session_of(world, "ada")
        said = world.begin(talk.ask("two", max_tokens=50))
        world.reach(said, TurnState.DECODING)
        world.cancel(said)
        world.settle()
        assert session_of(world, "ada") == known

    def test_after_its_end_is_too_late(self, world: World) -> None:
        with world.disk.writes:
            said = world.begin(Talk("ada").ask("one", max_tokens=2))
            while said.number in world.conductor.planner.turns:
                world.step()
            world.cancel(said)
        world.settle()
        assert said.ended.finish is Finish.LENGTH
        world.cancel(said)
        assert not world.step()

    def test_all_at_once(self) -> None:
        with World(limits=Limits(batch=2)) as world:
            turns = [world.begin(Talk(name).ask("one")) for name in "abcd"]
            world.step()
            world.conductor.cancel_all()
            world.settle()
            assert [said.ended.finish for said in turns[:2]] == [Finish.CANCELLED] * 2
            assert all(isinstance(said.error, TurnCancelled) for said in turns[2:])


class TestWaitingForAPlace:
    def test_a_full_queue_refuses_at_once(self) -> None:
        with one_place() as world:
            world.begin(Talk("ada").ask("one", max_tokens=2))
            world.step()
            world.begin(Talk("bob").ask("one", max_tokens=2))
            with pytest.raises(Overloaded) as refused:
                world.begin(Talk("cleo").ask("one"))
            assert refused.value.retry_after >= 1

    def test_who_waits_too_long_is_refused(self) -> None:
        with one_place() as world:
            first = world.begin(Talk("ada").ask("one", max_tokens=40))
            world.step()
            second = world.begin(Talk("bob").ask("one", timeout=5))
            world.clock.advance(4.9)
            world.step()
            assert not second.over
            world.clock.advance(0.2)
            world.step()
            assert isinstance(second.error, Overloaded)
            assert second.error.retry_after >= 1
            world.settle()
            world.check_answer(first)

    def test_a_prompt_that_never_fits_is_refused(self) -> None:
        with World(context=50) as world:
            with pytest.raises(PromptTooLong) as refused:
                world.begin(Talk("ada").ask(LONG))
            assert refused.value.limit == 49
            said = world.say(Talk("ada"), "one", max_tokens=1000)
            assert said.ended.prompt + said.ended.completion == 50

    def test_an_agent_has_one_turn_at_a_time(self, world: World) -> None:
        first = world.begin(Talk("ada").ask("one", max_tokens=20))
        second = world.begin(Talk("ada").ask("two", max_tokens=2))
        world.reach(first, TurnState.DECODING)
        assert world.conductor.planner.turns[second.number].state is TurnState.QUEUED
        world.settle()
        assert first.over
        world.check_answer(second)

    def test_others_have_as_many_as_they_like(self, world: World) -> None:
        for _ in range(3):
            world.begin(Talk("hint", exclusive=False).ask("one", max_tokens=20))
        world.step()
        assert world.conductor.planner.running == 3


class TestPreemption:
    def crowd(self, world: World) -> tuple[Said, Said]:
        """Two turns that outgrow their blocks, of which there are two."""
        older = world.begin(Talk("ada").ask("tell " * 80, max_tokens=80))
        younger = world.begin(Talk("bob").ask("tall " * 80, max_tokens=80))
        return older, younger

    def until_preempted(self, world: World, said: Said) -> None:
        world.reach(said, TurnState.DECODING)
        world.reach(said, TurnState.QUEUED)

    def test_a_turn_that_gave_its_place_up_goes_on_where_it_was(self, narrow: World) -> None:
        older, younger = self.crowd(narrow)
        self.until_preempted(narrow, younger)
        narrow.settle()
        narrow.check_answer(older)
        narrow.check_answer(younger)
        assert len(narrow.telemetry.started) == 2
        assert narrow.telemetry.tokens_forwarded == passed(older) + passed(younger)

    def test_it_can_be_cancelled_while_it_waits(self, narrow: World) -> None:
        older, younger = self.crowd(narrow)
        self.until_preempted(narrow, younger)
        narrow.cancel(younger)
        narrow.settle()
        assert isinstance(younger.error, TurnCancelled)
        assert sorted(one.finish.value for one in narrow.telemetry.ended) == ["cancelled", "length"]
        narrow.check_answer(older)

    def test_it_is_not_refused_for_waiting_once_more(self, narrow: World) -> None:
        younger = self.crowd(narrow)[1]
        self.until_preempted(narrow, younger)
        narrow.clock.advance(1000)
        narrow.conductor.planner.refuse_waiting(Unavailable("draining"))
        narrow.settle()
        narrow.check_answer(younger)


class TestFailures:
    def test_one_sequence_fails_alone(self, world: World) -> None:
        world.engine._fails = lambda sequence, step: "broken" if sequence == 2 else None
        turns = [world.begin(Talk(name).ask(name, max_tokens=5)) for name in "abc"]
        world.settle()
        assert [said.ended.finish for said in turns] == [
            Finish.LENGTH,
            Finish.FAILED,
            Finish.LENGTH,
        ]
        assert turns[1].ended.problem == "broken"
        world.check_answer(turns[0])
        world.check_answer(turns[2])

    @pytest.mark.parametrize("method", ["submit", "collect"])
    def test_a_step_that_fails_ends_the_turns_that_are_in_it(
        self, world: World, method: str
    ) -> None:
        talks = [Talk(name) for name in "ab"]
        turns = [world.begin(talk.ask(f"{talk.name} " * 20, max_tokens=9)) for talk in talks]
        waiting = world.begin(Talk("a").ask("waits for the other one of its agent", max_tokens=3))
        for said in turns:
            world.reach(said, TurnState.DECODING)
        world.engine.frailty.fail(method, RuntimeError("all of it"))
        world.settle()
        assert {said.ended.finish for said in turns} == {Finish.FAILED}
        assert {said.ended.problem for said in turns} == {"RuntimeError"}
        world.check_answer(waiting)

    @pytest.mark.parametrize("method", ["submit", "collect"])
    def test_the_next_turns_are_answered_after_a_step_that_failed(
        self, world: World, method: str
    ) -> None:
        world.engine.frailty.fail(method, MemoryError())
        talk = Talk("ada")
        said = world.begin(talk.ask("one"))
        world.settle()
        assert said.ended.finish is Finish.FAILED
        talk.take_back()
        world.say(talk, "one")

    def test_no_memory_to_start_with_ends_that_turn_alone(self, world: World) -> None:
        world.engine.frailty.fail("start", MemoryError())
        turns = [world.begin(Talk(name).ask(name, max_tokens=5)) for name in "ab"]
        world.settle()
        assert turns[0].ended.finish is Finish.FAILED
        assert turns[0].ended.problem == "MemoryError"
        world.check_answer(turns[1])

    @pytest.mark.parametrize("method", ["start", "adopt"])
    def test_a_failed_restore_gives_back_what_it_held(self, world: World, method: str) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        world.restart()
        world.engine.frailty.fail(method, MemoryError())
        said = world.begin(talk.ask("two"))
        world.settle()
        assert said.ended.finish is Finish.FAILED
        assert world.holds() == 0
        talk.take_back()
        assert world.say(talk, "two").admitted.cached > 0

    def test_a_sequence_that_cannot_go_on_is_given_up_but_not_its_rows(self, world: World) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        world.engine.frailty.fail("trim", RuntimeError())
        said = world.begin(talk.ask("two"))
        world.settle()
        assert said.ended.finish is Finish.FAILED
        talk.take_back()
        assert world.say(talk, "two").admitted.tier is Tier.WARM

    def test_a_sequence_that_cannot_grow_ends_its_turn_alone(self) -> None:
        with World(limits=Limits(reserve=1), blocks=8) as world:
            long = world.begin(Talk("ada").ask("tell " * 80, max_tokens=80))
            short = world.begin(Talk("bob").ask("one", max_tokens=80))
            world.engine.frailty.fail("grow", [MemoryError(), MemoryError()])
            world.settle()
            assert long.ended.finish is Finish.FAILED
            assert long.ended.completion == 256 - len(long.request.prompt) + 1
            world.check_answer(short)

    def test_rows_that_cannot_be_taken_out_cost_the_turn_nothing(self, world: World) -> None:
        talk = Talk("ada")
        world.engine.frailty.fail("export", MemoryError())
        said = world.say(talk, "one")
        assert said.ended.problem is None
        assert world.conductor.keeper.warm == {}
        assert rows_of(session_of(world, "ada")) == 0
        assert world.say(talk, "two").admitted.tier is Tier.HOT
        world.kill()
        assert world.say(talk, "three").admitted.cached > 20

    def test_whoever_waits_is_told_when_the_engine_thread_ends(self) -> None:
        with one_place() as world:
            first = world.begin(Talk("ada").ask("one"))
            world.step()
            second = world.begin(Talk("bob").ask("one"))
            problem = Unavailable("failed")
            world.conductor.fail_all(problem)
            assert (first.error, second.error) == (problem, problem)
            world.close()
            world.open()


class TestSessions:
    def test_an_agent_goes_by_its_name_whatever_it_said_before(self, world: World) -> None:
        world.say(Talk("ada"), "one")
        world.say(Talk("ada"), "something else")
        assert world.names() == ["ada"]

    def test_an_agents_history_may_be_rewritten(self, world: World) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        world.say(talk, "two")
        del talk.history[2:]
        said = world.say(talk, "not two")
        assert said.admitted.miss is Miss.MESSAGES_CHANGED
        assert said.admitted.cached > 20

    def test_without_a_name_a_conversation_goes_on_where_it_is_recognised(
        self, world: World
    ) -> None:
        talk = Talk()
        for text in ("one", "two", "three"):
            world.say(talk, text)
        (name,) = world.names()
        assert name.startswith("~")

    def test_a_divergence_is_a_branch(self, world: World) -> None:
        talk = Talk()
        world.say(talk, "one")
        fork = Talk(history=list(talk.history))
        world.say(talk, "two")
        world.say(fork, "not two")
        assert len(world.names()) == 2
        assert world.say(talk, "three").admitted.miss is Miss.NONE
        assert world.say(fork, "three").admitted.miss is Miss.NONE
        assert len(world.names()) == 2

    def test_a_hint_is_where_to_look_first(self, world: World) -> None:
        talk = Talk("hint", exclusive=False)
        world.say(talk, "one")
        world.say(talk, "two")
        assert world.names() == ["~hint"]

    def test_two_conversations_with_one_hint_are_two(self, world: World) -> None:
        talks = [Talk("hint", exclusive=False) for _ in range(2)]
        for text in ("one", "two"):
            for number, talk in enumerate(talks):
                world.say(talk, f"{text} of {number}")
        first, second = world.names()
        assert (first == "~hint") != (second == "~hint")

    def test_two_that_go_on_from_one_at_once_are_a_branch(self, world: World) -> None:
        talk = Talk("hint", exclusive=False)
        world.say(talk, "one")
        fork = Talk("hint", exclusive=False, history=list(talk.history))
        turns = [
            world.begin(one.ask(text, max_tokens=9))
            for one, text in ((talk, "two"), (fork, "also two"))
        ]
        assert turns[0].request.session == turns[1].request.session
        world.settle()
        for one, said in zip((talk, fork), turns, strict=True):
            world.check_answer(said)
            one.hear(said.text)
        assert len(world.names()) == 2
        assert world.say(talk, "three").admitted.miss is Miss.NONE
        assert world.say(fork, "three").admitted.miss is Miss.NONE
        assert len(world.names()) == 2

    def test_an_agent_may_go_on_from_what_another_said(self, world: World) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        fork = Talk("bob", history=list(talk.history))
        said = world.say(fork, "two")
        assert said.admitted.cached == rows_of(session_of(world, "ada"))
        assert world.names() == ["ada", "bob"]
        assert session_of(world, "ada").tokens < session_of(world, "bob").tokens


class TestMisses:
    def told(self, world: World, talk: Talk, text: str = "and then?") -> Miss:
        """What the next turn tells, which is counted too."""
        said = world.say(talk, text)
        assert world.telemetry.started[-1].miss is said.admitted.miss
        return said.admitted.miss

    def test_a_first_question_misses_nothing(self, world: World) -> None:
        assert self.told(world, Talk("ada")) is Miss.NONE

    def test_nobody_knows_the_conversation(self, world: World) -> None:
        talk = Talk("ada")
        talk.ask("who said this?")
        talk.hear("somebody else")
        assert self.told(world, talk) is Miss.NO_SESSION

    @pytest.mark.parametrize("exclusive", [True, False])
    def test_another_model_said_it(self, world: World, exclusive: bool) -> None:
        talk = Talk("ada", exclusive=exclusive)
        world.say(talk, "one")
        world.digest = b"another"
        world.restart()
        assert self.told(world, talk) is Miss.MODEL_CHANGED
        assert self.told(world, talk) is Miss.NONE

    def test_without_a_name_another_model_is_nobody(self, world: World) -> None:
        talk = Talk()
        world.say(talk, "one")
        world.say(Talk("None", exclusive=False), "two")  # nobody is called so
        world.digest = b"another"
        world.restart()
        assert self.told(world, talk) is Miss.NO_SESSION

    def test_the_system_prompt_changed(self, world: World) -> None:
        talk = Talk("ada", system=SYSTEM)
        world.say(talk, "one")
        talk.system = "You are somebody else."
        assert self.told(world, talk) is Miss.SYSTEM_CHANGED

    def test_the_tools_changed(self, world: World) -> None:
        talk = Talk("ada", system=SYSTEM)
        world.say(talk, "one")
        ask = talk.ask("two", max_tokens=2)
        said = world.begin(evolve(ask, conversation=evolve(ask.conversation, tools=TOOLS)))
        world.settle()
        assert said.admitted.miss is Miss.TOOLS_CHANGED

    def test_the_messages_changed(self, world: World) -> None:
        talk = Talk("ada", system=SYSTEM)
        world.say(talk, "one")
        talk.history.pop()
        talk.hear("what it never said")
        assert self.told(world, talk) is Miss.MESSAGES_CHANGED
