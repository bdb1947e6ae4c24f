"""The edge over the real engine thread, when clients go away and engines fail, at every stage."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from agentcache.adapters.http.app import create_app
from agentcache.adapters.http.edge import Edge
from agentcache.conductor import Conductor
from agentcache.domain.notices import Limits
from agentcache.domain.turn import TurnState
from agentcache.loop import STALLED_SECONDS
from tests.scripted_service import Call, client_of, frames
from tests.world import PATIENCE, Looped, World, looped

pytestmark = pytest.mark.anyio
LONG = 8000  # tokens of an answer that is not over before a test says so


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextmanager
def serving(**fields: Any) -> Iterator[Looped]:
    with looped(World(**fields)) as it:
        it.loop.wait_open()
        yield it


def call(it: Looped, text: str = "Hello", **fields: Any) -> Call:
    messages = [{"role": "user", "content": text}]
    fields = {"model": "memory", "messages": messages, "stream": True} | fields
    return Call(create_app(Edge(it.service, 1_000_000)), fields)


async def so(it: Looped, condition: Callable[[Conductor], object]) -> None:
    """Return when `condition` holds on the engine thread."""
    while not await asyncio.wrap_future(it.loop.ask(condition)):
        pass


def states(conductor: Conductor) -> list[TurnState]:
    return [turn.state for turn in conductor.planner.turns.values()]


def sent(one: Call) -> tuple[int, list[Any]]:
    """The status, and the events of the body."""
    messages = [one.sent.get_nowait() for _ in range(one.sent.qsize())]
    body = b"".join(message.get("body", b"") for message in messages)
    return messages[0]["status"], frames(body.decode())


async def cached(it: Looped, text: str) -> tuple[int, int]:
    """Ask; the tokens of the prompt, and how many of these were not computed again."""
    again = call(it, text, max_tokens=1, stream=False)
    await asyncio.wait_for(again.run(), PATIENCE)
    again.sent.get_nowait()
    usage = json.loads(again.sent.get_nowait()["body"])["usage"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def hanging(entered: threading.Event, leave: threading.Event, after: int = 0) -> Iterator[Any]:
    """For `Frailty.fail`: nothing fails, but the call after `after` others takes its time."""
    for _ in range(after):
        yield None
    entered.set()
    assert leave.wait(PATIENCE)


class TestGoingAway:
    async def test_who_waits_for_a_place_leaves_the_queue(self) -> None:
        with serving(limits=Limits(batch=1)) as it:
            first, second = call(it, max_tokens=LONG), call(it)
            running = [asyncio.create_task(one.run()) for one in (first, second)]
            await so(it, lambda one: one.planner.waiting == 1)
            second.hang_up()
            await asyncio.wait_for(running[1], PATIENCE)
            await so(it, lambda one: one.planner.waiting == 0 and one.planner.running == 1)
            first.hang_up()
            await asyncio.wait_for(running[0], PATIENCE)
            await so(it, lambda one: not one.planner.turns)

    async def test_who_waits_for_rows_from_disk_gives_the_place_back(self) -> None:
        text = "Tell me of the sea. " * 20
        with serving() as it:
            await asyncio.wait_for(call(it, text, max_tokens=2).run(), PATIENCE)
            await so(it, lambda one: one.planner.hot.drop_resting() or True)
            with it.world.disk.reads:
                one = call(it, text, max_tokens=2)
                running = asyncio.create_task(one.run())
                await so(it, lambda one: TurnState.FETCHING in states(one))
                one.hang_up()
                await asyncio.wait_for(running, PATIENCE)
            await so(it, lambda one: not one.planner.turns)
            prompt, again = await cached(it, text)
            assert again > prompt / 2

    async def test_whose_prompt_is_being_computed_finds_what_was(self) -> None:
        text, entered, leave = "many words and more " * 200, threading.Event(), threading.Event()
        with serving(limits=Limits(chunk=64, busy_chunk=64)) as it:
            it.world.engine.frailty.fail("submit", hanging(entered, leave, after=4))
            one = call(it, text)
            running = asyncio.create_task(one.run())
            assert await asyncio.to_thread(entered.wait, PATIENCE)
            one.hang_up()
            await asyncio.wait_for(running, PATIENCE)
            leave.set()
            await so(it, lambda one: not one.planner.turns)
            prompt, again = await cached(it, text)
            assert 64 * 4 <= again < prompt - 64

    async def test_who_is_being_answered_frees_the_place(self) -> None:
        with serving() as it:
            one = call(it, max_tokens=LONG)
            running = asyncio.create_task(one.run())
            await so(it, lambda one: TurnState.DECODING in states(one))
            one.hang_up()
            await asyncio.wait_for(running, PATIENCE)
            await so(it, lambda one: not one.planner.turns)

    async def test_whose_answer_is_being_written_is_remembered_nevertheless(self) -> None:
        with serving() as it:
            with it.world.disk.writes:
                one = call(it, max_tokens=2)
                running = asyncio.create_task(one.run())
                await so(it, lambda one: one.keeper.is_writing and not one.planner.turns)
                one.hang_up()
                await asyncio.wait_for(running, PATIENCE)
            await so(it, lambda one: not one.keeper.is_writing)
            assert len(it.world.disk.sessions.load().sessions) == 1


class TestFailing:
    async def test_a_step_that_fails_ends_its_own_turns_each_with_an_error_event(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with serving(limits=Limits(batch=2)) as it:
            calls = [call(it, f"Hello {name}", max_tokens=LONG) for name in "ab"]
            waiting = call(it, "I wait", max_tokens=2)
            running = [asyncio.create_task(one.run()) for one in (*calls, waiting)]
            await so(it, lambda one: states(one).count(TurnState.DECODING) == 2)
            it.world.engine.frailty.fail("collect", RuntimeError("the device is gone"))
            await asyncio.wait_for(asyncio.gather(*running), PATIENCE)
            for one in calls:
                status, events = sent(one)
                assert status == 200
                assert events[-1]["error"]["code"] == "turn_failed"
            status, events = sent(waiting)
            assert (status, events[-1]) == (200, "data: [DONE]".removeprefix("data: "))
            assert it.service.health().ready
        assert "step" in caplog.text

    async def test_an_engine_that_hangs_is_noticed_by_liveness_and_recovers(self) -> None:
        entered, leave = threading.Event(), threading.Event()
        with serving() as it:
            it.world.clock.advance(1.0)
            await so(it, lambda _one: it.loop.beat)
            it.world.engine.frailty.fail("collect", hanging(entered, leave))
            one = call(it, max_tokens=2)
            running = asyncio.create_task(one.run())
            assert await asyncio.to_thread(entered.wait, PATIENCE)
            async with client_of(create_app(Edge(it.service, 1000))) as http:
                assert (await http.get("/health/live")).status_code == 200
                it.world.clock.advance(STALLED_SECONDS + 1)
                dead = await http.get("/health/live")
                leave.set()
                await asyncio.wait_for(running, PATIENCE)
                await so(it, lambda _one: it.loop.beat > STALLED_SECONDS)
                assert (await http.get("/health/live")).status_code == 200
        assert dead.status_code == 503
        assert "has not finished a step" in dead.json()["detail"]["engine"]
