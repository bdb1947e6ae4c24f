"""Which session a turn goes on from and leaves behind, and what it is told to have missed."""

from collections.abc import Iterator

import pytest
from attrs import evolve

from agentcache.domain.conversation import Message
from agentcache.domain.notices import Limits
from agentcache.domain.request import Miss
from agentcache.domain.session import Session
from agentcache.domain.tools import tools_json
from tests.talks import Talk
from tests.world import World

SYSTEM = "You are an agent among others, and all of you have been told the same."
TOOLS = ({"type": "function", "function": {"name": "search"}},)


@pytest.fixture(params=[1, 2], ids=["one step in flight", "two steps in flight"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Small chunks, so that a prompt takes several steps."""
    with World(limits=Limits(chunk=16, busy_chunk=8), in_flight=request.param) as world:
        yield world


def session_of(world: World, name: str) -> Session:
    session = world.session(name)
    assert session is not None
    return session


def rows_of(session: Session) -> int:
    return session.cursor.row if session.cursor else 0


class TestSessions:
    def test_an_agent_goes_by_its_name_whatever_it_said_before(self, world: World) -> None:
        world.say(Talk("ada"), "one")
        world.say(Talk("ada"), "something else")
        assert world.names() == ["ada"]

    def test_an_agent_keeps_its_conversation_as_it_was_told(self, world: World) -> None:
        talk = Talk("ada", system=SYSTEM)
        for text in ("one", "two"):
            world.say(talk, text)
        told = (Message("system", SYSTEM), *talk.history)
        assert session_of(world, "ada").messages == told
        world.restart()
        assert session_of(world, "ada").messages == told

    def test_an_answer_is_kept_without_the_stop_sequence(self, world: World) -> None:
        whole = world.say(Talk("eve"), "one", max_tokens=12).text
        said = world.say(Talk("ada"), "one", max_tokens=12, stop=(whole[4:6],))
        assert session_of(world, "ada").messages[-1] == Message("assistant", said.text)
        assert whole[4:6] not in said.text

    def test_tools_are_kept_with_the_conversation(self, world: World) -> None:
        asked = Talk("ada").ask("one", max_tokens=2)
        asked = evolve(asked, conversation=evolve(asked.conversation, tools=TOOLS))
        world.begin(asked)
        world.settle()
        assert session_of(world, "ada").tools == tools_json(TOOLS)

    def test_what_is_not_to_be_stored_leaves_no_conversation(self, world: World) -> None:
        talk = Talk("ada")
        world.say(talk, "one")
        before = session_of(world, "ada").messages
        world.say(talk, "two", store=False)
        assert session_of(world, "ada").messages == before

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
