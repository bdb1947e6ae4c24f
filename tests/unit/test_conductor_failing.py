"""Turns that wait, give up, are cancelled or fail."""

from collections.abc import Iterator

import pytest

from agentcache.domain.errors import (
    Overloaded,
    PromptTooLong,
    TurnCancelled,
    Unavailable,
)
from agentcache.domain.notices import Limits
from agentcache.domain.request import Finish, Tier
from agentcache.domain.session import Session
from agentcache.domain.tokens import common_prefix
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

    def test_at_the_moment_when_it_is_restored(self, world: World) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        world.restart()
        said = world.begin(talk.ask("two"))
        world.reach(said, TurnState.FETCHING)
        world.wait()
        world.cancel_last(said)
        world.settle()
        assert said.admitted.cached > 0
        assert said.ended.finish is Finish.CANCELLED

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
            world.conductor.cut_all(TurnCancelled())
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

    def test_a_turn_that_waited_goes_on_from_where_its_agent_stands_by_then(self) -> None:
        """Of rows that are so few only who knows that they are its own goes on from them."""
        with World(limits=Limits(batch=1), least_shared=10_000) as world:
            talk = Talk("ada")
            first = world.begin(talk.ask("one and no more"))
            talk.take_back()
            second = world.begin(talk.ask("one and another"))
            assert second.request.cursor is None
            while first.number in world.conductor.planner.turns:
                world.step()
            world.rest_hot()
            world.settle()
            assert second.admitted.tier is Tier.WARM
            shared = common_prefix(first.request.prompt.tokens, 0, second.request.prompt.tokens, 0)
            assert second.admitted.cached == shared > 0
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
        assert world.conductor.keeper.tiers.warm == {}
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
            world.conductor.speeches.fail_all(problem)
            assert (first.error, second.error) == (problem, problem)
            world.close()
            world.open()
