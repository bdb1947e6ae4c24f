"""What can be done with agents apart from talking to them."""

import asyncio
from collections.abc import Iterator

import pytest

from agentcache.domain.conversation import Message, turn_starts
from agentcache.domain.errors import (
    AgentBusy,
    AgentCacheError,
    AgentExists,
    InvalidRequest,
    UnknownAgent,
)
from agentcache.domain.events import Admitted
from agentcache.domain.notices import Limits
from agentcache.domain.request import Miss, Tier
from agentcache.domain.session import Session
from tests.talks import Talk
from tests.unit.test_service import ask_long, heard, run
from tests.world import Looped, World, looped

TENANT = "default"
SYSTEM = "You are an agent, and you have been told so at some length."


@pytest.fixture
def running() -> Iterator[Looped]:
    with looped(World(limits=Limits(batch=2))) as running:
        running.loop.wait_open()
        yield running


async def say(running: Looped, talk: Talk, *texts: str) -> Admitted:
    """Whole turns, of which the last one's admission is returned."""
    for text in texts:
        turn = await running.service.begin(talk.ask(text, max_tokens=6))
        talk.hear((await heard(turn))[0])
    return turn.admitted


def stored(running: Looped, name: str) -> Session:
    """The session as the home has it."""
    found = [one for one in running.world.disk.sessions.load().sessions if one.name == name]
    assert len(found) == 1
    return found[0]


class TestLooking:
    def test_agents_are_listed_by_name(self, running: Looped) -> None:
        async def story() -> None:
            for name in ("eve", "ada"):
                await say(running, Talk(name), "one")
            assert [one.name for one in running.service.agents(TENANT)] == ["ada", "eve"]

        run(story())

    def test_conversations_without_a_name_are_not_listed(self, running: Looped) -> None:
        async def story() -> None:
            await say(running, Talk(), "one")
            await say(running, Talk("hint", exclusive=False), "one")
            assert running.service.agents(TENANT) == ()

        run(story())

    def test_a_tenant_does_not_see_another_ones_agents(self, running: Looped) -> None:
        async def story() -> None:
            await say(running, Talk("ada", tenant="theirs"), "one")
            assert running.service.agents(TENANT) == ()
            with pytest.raises(UnknownAgent):
                running.service.agent(TENANT, "ada")
            with pytest.raises(UnknownAgent):
                running.service.history(TENANT, "ada")

        run(story())

    def test_an_agent_is_seen_with_what_it_said_and_holds(self, running: Looped) -> None:
        async def story() -> None:
            talk = Talk("ada", system=SYSTEM)
            await say(running, talk, "one")
            last = await say(running, talk, "two")
            view = running.service.agent(TENANT, "ada")
            assert (view.name, view.tenant, view.model) == ("ada", TENANT, "memory")
            assert (view.messages, view.turns, view.tokens) == (5, 2, last.prompt + 6)
            assert (view.pinned, view.expires, view.parent) == (False, None, None)
            assert view.tier is Tier.HOT
            assert view.nbytes > 0
            assert view.shared_bytes == 0
            assert (view.hits, view.cached_tokens) == (1, last.cached)
            assert view.prompt_tokens > last.prompt

        run(story())

    def test_its_history_is_what_was_said(self, running: Looped) -> None:
        async def story() -> None:
            talk = Talk("ada", system=SYSTEM)
            await say(running, talk, "one", "two")
            told = (Message("system", SYSTEM), *talk.history)
            assert running.service.history(TENANT, "ada") == told

        run(story())


class TestForking:
    def test_a_fork_remembers_what_its_parent_does(self, running: Looped) -> None:
        async def story() -> None:
            talk = Talk("ada")
            await say(running, talk, "one", "two")
            await running.service.fork(TENANT, "ada", "eve")
            fork = Talk("eve", history=list(talk.history))
            admitted = await say(running, fork, "three")
            assert admitted.miss is Miss.NONE
            assert admitted.cached > 40
            view = running.service.agent(TENANT, "eve")
            assert view.parent == "ada"
            assert view.shared_bytes > 0

        run(story())

    def test_a_fork_does_not_see_its_parents_later_turns(self, running: Looped) -> None:
        async def story() -> None:
            talk = Talk("ada")
            await say(running, talk, "one")
            before = tuple(talk.history)
            await running.service.fork(TENANT, "ada", "eve")
            await say(running, talk, "two")
            assert running.service.history(TENANT, "eve") == before

        run(story())

    def test_a_fork_is_in_the_home_when_the_call_returns(self, running: Looped) -> None:
        async def story() -> None:
            await say(running, Talk("ada"), "one")
            await running.service.fork(TENANT, "ada", "eve")
            assert stored(running, "eve").messages == stored(running, "ada").messages
            assert stored(running, "eve").cursor == stored(running, "ada").cursor

        run(story())

    def test_a_fork_writes_no_rows(self, running: Looped) -> None:
        async def story() -> None:
            await say(running, Talk("ada"), "one")
            encoded, kept = (
                list(running.world.codec.encoded),
                len(running.world.disk.segments._kept),
            )
            await running.service.fork(TENANT, "ada", "eve")
            assert running.world.codec.encoded == encoded
            assert len(running.world.disk.segments._kept) == kept

        run(story())

    @pytest.mark.parametrize(
        ("name", "new", "error"),
        [
            ("nobody", "eve", UnknownAgent),
            ("ada", "ada", AgentExists),
            ("ada", "~eve", InvalidRequest),
            ("ada", "", InvalidRequest),
            ("ada", "e" * 257, InvalidRequest),
        ],
    )
    def test_what_cannot_be_forked_is_refused(
        self, running: Looped, name: str, new: str, error: type[AgentCacheError]
    ) -> None:
        async def story() -> None:
            await say(running, Talk("ada"), "one")
            with pytest.raises(error):
                await running.service.fork(TENANT, name, new)
            assert len(running.service.agents(TENANT)) == 1

        run(story())

    def test_of_two_forks_with_one_name_one_is_made(self, running: Looped) -> None:
        async def story() -> None:
            await say(running, Talk("ada"), "one")
            forks = [running.service.fork(TENANT, "ada", "eve") for _ in range(2)]
            made = await asyncio.gather(*forks, return_exceptions=True)
            assert sorted(map(repr, made)) == ["AgentExists(name='eve')", "None"]

        run(story())


class TestRewinding:
    def test_a_rewound_agent_is_as_it_was_before(self, running: Looped) -> None:
        async def story() -> None:
            talk = Talk("ada", system=SYSTEM)
            await say(running, talk, "one")
            before = running.service.agent(TENANT, "ada")
            await say(running, talk, "two", "three")
            await running.service.rewind(TENANT, "ada", 2)
            after = running.service.agent(TENANT, "ada")
            assert (after.messages, after.turns) == (before.messages, before.turns)
            assert before.tokens <= after.tokens <= before.tokens + 2  # that end the answer
            assert stored(running, "ada").messages == running.service.history(TENANT, "ada")

        run(story())

    def test_it_goes_on_from_there_without_computing_it_again(self, running: Looped) -> None:
        async def story() -> None:
            talk = Talk("ada", system=SYSTEM)
            await say(running, talk, "one", "two")
            await running.service.rewind(TENANT, "ada", 1)
            del talk.history[2:]
            admitted = await say(running, talk, "not two")
            assert admitted.miss is Miss.NONE
            assert admitted.cached > 60

        run(story())

    def test_all_of_it_can_be_taken_back_but_the_system_prompt(self, running: Looped) -> None:
        async def story() -> None:
            await say(running, Talk("ada", system=SYSTEM), "one")
            await running.service.rewind(TENANT, "ada", 1)
            assert running.service.history(TENANT, "ada") == (Message("system", SYSTEM),)
            await say(running, Talk("eve"), "one")
            await running.service.rewind(TENANT, "eve", 1)
            assert running.service.history(TENANT, "eve") == ()
            assert running.service.agent(TENANT, "eve").tokens == 0

        run(story())

    @pytest.mark.parametrize("turns", [-1, 0, 3, 10**9])
    def test_more_turns_than_there_are_cannot_be_taken_back(
        self, running: Looped, turns: int
    ) -> None:
        async def story() -> None:
            await say(running, Talk("ada"), "one", "two")
            with pytest.raises(InvalidRequest, match="2 turns to take back"):
                await running.service.rewind(TENANT, "ada", turns)
            assert len(running.service.history(TENANT, "ada")) == 4

        run(story())

    def test_an_agent_that_answers_is_not_rewound(self, running: Looped) -> None:
        async def story() -> None:
            await say(running, Talk("ada"), "one")
            turn = await running.service.begin(ask_long())
            with pytest.raises(AgentBusy):
                await running.service.rewind(TENANT, "ada", 1)
            await turn.cancel()

        run(story())

    def test_a_fork_stays_where_it_is_when_its_parent_is_rewound(self, running: Looped) -> None:
        async def story() -> None:
            await say(running, Talk("ada"), "one", "two")
            before = running.service.history(TENANT, "ada")
            await running.service.fork(TENANT, "ada", "eve")
            await running.service.rewind(TENANT, "ada", 2)
            assert running.service.history(TENANT, "eve") == before

        run(story())


class TestStayingAndGoing:
    def test_a_pin_holds_what_the_agent_builds_on_until_it_is_taken_off(
        self, running: Looped
    ) -> None:
        async def story() -> None:
            await say(running, Talk("ada"), "one")
            await running.service.pin(TENANT, "ada")
            assert stored(running, "ada").pinned
            assert running.world.holds() > 0
            await running.service.pin(TENANT, "ada", pinned=False)
            assert not running.service.agent(TENANT, "ada").pinned
            assert running.world.holds() == 0

        with_conductor(running)
        run(story())

    def test_a_turn_keeps_pin_and_end(self, running: Looped) -> None:
        async def story() -> None:
            talk = Talk("ada")
            await say(running, talk, "one")
            await running.service.pin(TENANT, "ada")
            await running.service.expire(TENANT, "ada", 2e9)
            await say(running, talk, "two")
            view = running.service.agent(TENANT, "ada")
            assert (view.pinned, view.expires) == (True, 2e9)

        run(story())

    def test_the_end_of_an_agent_is_kept_and_can_be_taken_back(self, running: Looped) -> None:
        async def story() -> None:
            await say(running, Talk("ada"), "one")
            await running.service.expire(TENANT, "ada", 2e9)
            assert stored(running, "ada").expires == 2e9
            await running.service.expire(TENANT, "ada", None)
            assert stored(running, "ada").expires is None
            with pytest.raises(InvalidRequest):
                await running.service.expire(TENANT, "ada", float("nan"))

        run(story())

    def test_a_forgotten_agent_is_gone_from_the_home(self, running: Looped) -> None:
        async def story() -> None:
            await say(running, Talk("ada"), "one")
            await running.service.pin(TENANT, "ada")
            await running.service.forget(TENANT, "ada")
            assert running.service.agents(TENANT) == ()
            assert running.world.disk.sessions.load().sessions == ()
            assert running.world.holds() == 0

        with_conductor(running)
        run(story())

    def test_an_agent_that_answers_is_not_forgotten(self, running: Looped) -> None:
        async def story() -> None:
            await say(running, Talk("ada"), "one")
            turn = await running.service.begin(ask_long())
            with pytest.raises(AgentBusy):
                await running.service.forget(TENANT, "ada")
            await turn.cancel()

        run(story())

    def test_what_is_not_there_cannot_be_changed(self, running: Looped) -> None:
        async def story() -> None:
            service = running.service
            for change in (
                service.pin(TENANT, "ada"),
                service.expire(TENANT, "ada", None),
                service.forget(TENANT, "ada"),
                service.rewind(TENANT, "ada", 1),
            ):
                with pytest.raises(UnknownAgent):
                    await change

        run(story())


def with_conductor(running: Looped) -> None:
    """Let the world look at what the loop runs."""
    running.world.conductor = running.loop.conductor


@pytest.mark.parametrize(
    ("roles", "starts"),
    [
        ("", ()),
        ("s", ()),
        ("ua", (0,)),
        ("suaua", (1, 3)),
        ("suatau", (1, 5)),
        ("suuauu", (1, 4)),
    ],
)
def test_a_turn_begins_where_a_user_speaks_after_somebody_else(
    roles: str, starts: tuple[int, ...]
) -> None:
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    assert turn_starts([Message(names[role]) for role in roles]) == starts
