"""The library as programs with an event loop use it."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import agentcache
from agentcache import AsyncAgentCache, AsyncStream, Miss
from agentcache.domain.errors import Closed, HomeLocked, ModelError, TurnCancelled
from tests.tiny_models import END, tiny_llama

SYSTEM = "You are brief. " * 10
SHORT = {"max_tokens": 6, "temperature": 0.0}
LONG = {"temperature": 0.0, "logit_bias": {END: -1000.0}}  # until there is no room
SECONDS = 120

Story = Callable[[AsyncAgentCache], Awaitable[None]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny", seed=1)


@pytest.fixture
def tell(model: Path, tmp_path: Path) -> Callable[[Story], None]:
    """Runs a story with a cache that is open."""

    async def within(story: Story) -> None:
        async with opened(model, tmp_path) as cache, asyncio.timeout(SECONDS):
            await story(cache)

    return lambda story: asyncio.run(within(story), debug=True)


@asynccontextmanager
async def opened(model: Path, home: Path) -> AsyncIterator[AsyncAgentCache]:
    async with agentcache.open_async(model=str(model), home=home, memory_budget="64MB") as cache:
        yield cache


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - another thread makes it true
        await asyncio.sleep(0)


async def to_the_end(stream: AsyncStream) -> None:
    async for _ in stream:
        pass


def test_it_has_what_the_plain_library_has(tell: Callable[[Story], None]) -> None:
    async def story(cache: AsyncAgentCache) -> None:
        agent = cache.agent("ada", system=SYSTEM)
        await agent.prefill()
        first = await agent.say("one", **SHORT)
        assert first.cache.cached_tokens > 100
        async with agent.stream("two", **SHORT) as stream:
            assert "".join([piece async for piece in stream]) == stream.answer.text
        fork = await agent.fork("eve")
        await fork.rewind(2)
        await fork.pin()
        await fork.expire(1000)
        assert [message.role for message in fork.history] == ["system"]
        assert (fork.info.pinned, fork.info.parent) == (True, "ada")
        await fork.delete()
        assert [view.name for view in cache.agents()] == ["ada"]
        assert cache.model.name == "tiny"

    tell(story)


def test_agents_answer_at_once(tell: Callable[[Story], None]) -> None:
    async def story(cache: AsyncAgentCache) -> None:
        said = await asyncio.gather(*(cache.agent(f"a{n}").say("one", **SHORT) for n in range(5)))
        assert len({answer.text for answer in said}) == 1
        assert len(cache.agents()) == 5

    tell(story)


def test_what_one_agent_is_told_at_once_is_all_remembered(tell: Callable[[Story], None]) -> None:
    async def story(cache: AsyncAgentCache) -> None:
        handles = [cache.agent("ada") for _ in range(4)]
        turns = (agent.say(f"text {n}", **SHORT) for n, agent in enumerate(handles))
        answers = await asyncio.gather(*turns)
        assert all(answer.cache.miss is Miss.NONE for answer in answers[1:])
        assert len(handles[0].history) == 8

    tell(story)


def test_a_call_that_is_cancelled_cancels_its_turn_before_what_comes_next(
    tell: Callable[[Story], None],
) -> None:
    async def story(cache: AsyncAgentCache) -> None:
        agent, planner = cache.agent("ada"), cache.service._loop.conductor.planner
        await agent.say("zero", **SHORT)
        saying = asyncio.create_task(agent.say("one", **LONG))
        await until(lambda: planner.running > 0)
        saying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saying
        await agent.rewind()
        assert agent.history == ()
        assert not planner.turns

    tell(story)


def test_a_stream_that_nobody_holds_any_more_is_cancelled(tell: Callable[[Story], None]) -> None:
    async def story(cache: AsyncAgentCache) -> None:
        agent = cache.agent("ada")
        stream = agent.stream("one", **LONG)
        await anext(stream)
        del stream
        gc.collect()
        await agent.say("two", **SHORT)
        assert [message.content for message in agent.history[::2]] == ["two"]

    tell(story)


def test_a_stream_that_was_closed_before_it_began_says_nothing(
    tell: Callable[[Story], None],
) -> None:
    async def story(cache: AsyncAgentCache) -> None:
        stream = cache.agent("ada").stream("one", **SHORT)
        await stream.aclose()
        assert [piece async for piece in stream] == []
        with pytest.raises(TurnCancelled):
            _ = stream.answer
        assert cache.agents() == ()

    tell(story)


def test_what_runs_while_it_is_closed_is_cancelled(tell: Callable[[Story], None]) -> None:
    async def story(cache: AsyncAgentCache) -> None:
        stream = cache.agent("ada").stream("one", **LONG)
        await anext(stream)
        await cache.close()
        with pytest.raises(TurnCancelled, match="the cache was closed"):
            await to_the_end(stream)
        with pytest.raises(Closed):
            await cache.agent("ada").say("two")
        await cache.close()

    tell(story)


def test_it_can_be_awaited_and_closed(model: Path, tmp_path: Path) -> None:
    async def story() -> None:
        cache = await agentcache.open_async(model=str(model), home=tmp_path)
        with pytest.raises(HomeLocked):
            await agentcache.open_async(model=str(model), home=tmp_path)
        await cache.close()
        async with agentcache.open_async(model=str(model), home=tmp_path) as again:
            assert again.agents() == ()

    asyncio.run(story())


def test_an_opening_that_fails_leaves_the_home_free(model: Path, tmp_path: Path) -> None:
    async def story() -> None:
        with pytest.raises(ModelError):
            await agentcache.open_async(model=str(tmp_path / "none"), home=tmp_path)
        async with opened(model, tmp_path):
            pass

    asyncio.run(story())


def test_an_opening_that_is_cancelled_leaves_the_home_free(model: Path, tmp_path: Path) -> None:
    async def story() -> None:
        opening = asyncio.ensure_future(agentcache.open_async(str(model), tmp_path)._opening())
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        async with asyncio.timeout(SECONDS):
            while True:
                try:
                    async with opened(model, tmp_path):
                        return
                except HomeLocked:
                    await asyncio.sleep(0.01)

    asyncio.run(story())
