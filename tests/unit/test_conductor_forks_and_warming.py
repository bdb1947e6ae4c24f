"""Turns of agents that are busy, and turns that only make an agent warm."""

from collections.abc import Iterator

import pytest

from agentcache.domain.conversation import Message
from agentcache.domain.events import Admitted, Ended
from agentcache.domain.notices import Limits
from agentcache.domain.request import MAX_AGENT_NAME, Finish, Miss, Tier
from agentcache.domain.turn import TurnState
from tests.talks import Said, Talk
from tests.world import World

SYSTEM = "You are an agent among others, and all of you have been told the same."


@pytest.fixture(params=[1, 2], ids=["one step in flight", "two steps in flight"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with World(limits=Limits(chunk=16, busy_chunk=8), in_flight=request.param) as world:
        yield world


def _at_once(world: World, talk: Talk, when_busy: str) -> tuple[Said, Said]:
    """Two turns of an agent that has said something before, the second while the first speaks."""
    world.say(talk, "one")
    first = world.begin(talk.ask("two", max_tokens=200))
    world.reach(first, TurnState.DECODING)
    talk.take_back()
    second = world.begin(talk.ask("not two", max_tokens=3, when_busy=when_busy))
    while not second.over:
        world.step()
    return first, second


class TestABusyAgent:
    def test_its_second_turn_waits(self, world: World) -> None:
        first, second = _at_once(world, Talk("ada"), "wait")
        assert first.over
        assert (first.admitted.agent, second.admitted.agent) == ("ada", "ada")
        assert world.names() == ["ada"]

    def test_its_second_turn_runs_on_a_fork_if_that_is_asked(self, world: World) -> None:
        first, second = _at_once(world, Talk("ada"), "fork")
        assert not first.over
        fork = str(second.admitted.agent)
        assert fork.startswith("ada~")
        assert second.admitted.cached == first.admitted.cached > 10
        world.settle()
        world.check_answer(second)
        assert world.names() == ["ada", fork]
        session = world.session(fork)
        assert session is not None
        assert session.parent == "ada"
        last = session.messages[-1]
        assert (last.role, last.content) == ("assistant", second.text)

    def test_a_fork_goes_its_own_way(self, world: World) -> None:
        talk = Talk("ada")
        _, second = _at_once(world, talk, "fork")
        world.settle()
        fork = Talk(second.admitted.agent, history=list(talk.history))
        fork.hear(second.text)
        again = world.say(fork, "and then")
        assert again.admitted.miss is Miss.NONE
        assert again.admitted.agent == second.admitted.agent

    def test_nobody_is_forked_who_is_not_busy(self, world: World) -> None:
        said = world.say(Talk("ada"), "one", when_busy="fork")
        assert said.admitted.agent == "ada"
        assert world.names() == ["ada"]

    def test_any_number_of_forks_may_run_at_once(self, world: World) -> None:
        talks = [Talk("ada") for _ in range(5)]
        said = [world.begin(talk.ask("one", max_tokens=9, when_busy="fork")) for talk in talks]
        world.settle()
        assert len({one.admitted.agent for one in said}) == 5

    def test_the_longest_name_has_forks(self, world: World) -> None:
        _, second = _at_once(world, Talk("a" * MAX_AGENT_NAME), "fork")
        assert len(str(second.admitted.agent)) == MAX_AGENT_NAME

    def test_who_has_no_name_is_nobody(self, world: World) -> None:
        assert world.say(Talk(), "one", when_busy="fork").admitted.agent is None


class TestWarming:
    def test_a_prompt_is_computed_and_nothing_is_said(self, world: World) -> None:
        said = world.begin(Talk("ada", system=SYSTEM).ask("one", max_tokens=0))
        world.settle()
        first, last = said.events
        assert isinstance(first, Admitted)
        assert isinstance(last, Ended)
        assert (last.finish, last.completion) == (Finish.LENGTH, 0)

    @pytest.mark.parametrize("restart", [False, True])
    def test_the_turn_that_follows_finds_it_all(self, world: World, restart: bool) -> None:
        talk = Talk("ada", system=SYSTEM)
        warming = world.begin(talk.ask("one", max_tokens=0))
        world.settle()
        if restart:
            world.restart()
        talk.take_back()
        said = world.say(talk, "one")
        assert said.admitted.cached == len(warming.request.prompt)
        assert said.admitted.miss is Miss.NONE
        assert said.admitted.tier is (Tier.COLD if restart else Tier.HOT)

    def test_what_an_agent_is_told_first_can_be_computed_before_its_first_question(
        self, world: World
    ) -> None:
        talk = Talk("ada", history=[Message("system", SYSTEM)])
        world.begin(talk.ask("", max_tokens=0))
        world.settle()
        talk.take_back()
        said = world.say(talk, "one")
        assert said.admitted.miss is not Miss.EVICTED
        assert said.admitted.cached > len(SYSTEM) // 2

    def test_an_agent_remembers_what_it_was_told(self, world: World) -> None:
        world.begin(Talk("ada", system=SYSTEM).ask("one", max_tokens=0))
        world.settle()
        session = world.session("ada")
        assert session is not None
        assert [one.role for one in session.messages] == ["system", "user"]
        assert session.cursor is not None
        assert session.cursor.row == session.tokens

    def test_a_conversation_goes_on_after_its_next_prompt_was_computed(self, world: World) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        warming = world.begin(talk.ask("two", max_tokens=0))
        world.settle()
        talk.take_back()
        said = world.say(talk, "two")
        assert warming.admitted.miss is said.admitted.miss is Miss.NONE
        assert said.admitted.cached == len(warming.request.prompt)

    def test_without_a_name_only_the_rows_are_kept(self, world: World) -> None:
        talk = Talk(system=SYSTEM)
        warming = world.begin(talk.ask("one", max_tokens=0))
        world.settle()
        assert world.names() == []
        talk.take_back()
        assert world.say(talk, "one").admitted.cached == len(warming.request.prompt)

    def test_without_store_nothing_is_kept(self, world: World) -> None:
        talk = Talk("ada", system=SYSTEM)
        world.begin(talk.ask("one", max_tokens=0, store=False))
        world.settle()
        assert world.names() == []
        assert world.segments(Tier.WARM) == []


class TestFetching:
    def test_others_speak_on_while_rows_are_fetched(self) -> None:
        with World() as world:
            talk = Talk("ada", system=SYSTEM)
            world.say(talk, "one")
            world.go_cold()
            other = world.begin(Talk("bob").ask("count", max_tokens=40))
            world.reach(other, TurnState.DECODING)
            with world.disk.reads:
                back = world.begin(talk.ask("two", max_tokens=3))
                while other.number in world.conductor.planner.turns:
                    assert world.conductor.round()
                assert not back.events
            world.settle()
            assert back.admitted.tier is Tier.COLD
            world.check_answer(back)
