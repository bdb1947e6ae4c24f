"""What a user can ask for, from an event loop."""

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine, Iterator

import pytest
from attrs import evolve

from agentcache.conductor import Conductor
from agentcache.domain.conversation import Conversation
from agentcache.domain.errors import (
    InvalidRequest,
    Overloaded,
    PromptTooLong,
    TurnCancelled,
    TurnFailed,
    Unavailable,
)
from agentcache.domain.events import Delta, Ended
from agentcache.domain.guide import Grammar
from agentcache.domain.notices import Limits
from agentcache.domain.request import Finish, Identity, Sampling, Tier
from agentcache.loop import STALLED_SECONDS, EngineLoop
from agentcache.service import Ask, RunningTurn, Service
from tests.talks import Talk
from tests.world import PATIENCE, Looped, World, looped


@pytest.fixture
def running() -> Iterator[Looped]:
    """With one place, so that a second turn waits."""
    with looped(World(limits=Limits(batch=1, queue=2))) as running:
        running.loop.wait_open()
        yield running


def run(story: Coroutine[None, None, None]) -> None:
    """Run `story` on an event loop that complains about what it forgot."""

    async def within() -> None:
        async with asyncio.timeout(PATIENCE):
            await story

    asyncio.run(within(), debug=True)


async def heard(turn: RunningTurn) -> tuple[str, Ended]:
    """All that a turn says, and its end."""
    *deltas, last = [event async for event in turn]
    assert isinstance(last, Ended)
    return "".join(one.text for one in deltas if isinstance(one, Delta)), last


async def asked(running: Looped, ask: Ask) -> str:
    return (await heard(await running.service.begin(ask)))[0]


def ask_long(name: str = "ada") -> Ask:
    return Talk(name).ask("one", max_tokens=8000)


async def on_engine(running: Looped, call: Callable[[Conductor], object]) -> object:
    return await asyncio.wrap_future(running.loop.ask(call))


async def places_taken(running: Looped) -> object:
    """How many turns there are, once all that was asked before is done."""
    await on_engine(running, lambda _: None)
    return await on_engine(running, lambda one: len(one.planner.turns))


class Halt:
    """The engine thread stands still until it is told to go on."""

    def __init__(self, running: Looped) -> None:
        self._inbox, self._doors = running.loop._inbox, threading.Event()
        self._standing = threading.Event()
        running.loop.post(self._stand)

    def _stand(self) -> None:
        self._standing.set()
        self._doors.wait(PATIENCE)

    def go_on(self) -> None:
        self._doors.set()

    async def is_followed(self) -> None:
        """Return once something is asked of the engine thread."""

        def asked() -> None:
            self._standing.wait(PATIENCE)
            call = self._inbox.get(timeout=PATIENCE)
            self._inbox.put(call)

        await asyncio.to_thread(asked)


class TestTurns:
    def test_an_answer_is_told_as_it_is_said(self, running: Looped) -> None:
        async def story() -> None:
            turn = await running.service.begin(Talk("ada").ask("one", max_tokens=5))
            assert turn.admitted.cached == 0
            _, ended = await heard(turn)
            assert (ended.finish, ended.completion) == (Finish.LENGTH, 5)
            assert [event async for event in turn] == []  # it is over

        run(story())

    def test_a_conversation_goes_on_where_it_was(self, running: Looped) -> None:
        async def story() -> None:
            talk = Talk("ada")
            for number in range(3):
                turn = await running.service.begin(talk.ask(f"question {number}", max_tokens=5))
                assert (turn.admitted.tier is Tier.HOT) == (number > 0)
                talk.hear((await heard(turn))[0])

        run(story())

    def test_turns_at_once_are_told_apart(self, running: Looped) -> None:
        async def story() -> None:
            alone = [await asked(running, Talk().ask(text, max_tokens=5)) for text in "ab"]
            asks = [Talk().ask(text, max_tokens=5) for text in "ab"]
            assert await asyncio.gather(*(asked(running, ask) for ask in asks)) == alone

        run(story())

    def test_a_turn_whose_engine_fails_raises(self, running: Looped) -> None:
        running.world.engine._fails = lambda _sequence, step: "broken" if step > 3 else None

        async def story() -> None:
            turn = await running.service.begin(ask_long())
            with pytest.raises(TurnFailed, match="broken"):
                await heard(turn)

        run(story())

    def test_a_turn_that_fails_before_it_has_a_place_raises_at_once(self, running: Looped) -> None:
        talk = Talk("ada")

        async def story() -> None:
            talk.hear(await asked(running, talk.ask("one", max_tokens=2)))
            await on_engine(running, lambda one: one.planner.hot.drop_resting())
            running.world.engine.frailty.fail("start", MemoryError())
            with pytest.raises(TurnFailed, match="MemoryError"):
                await running.service.begin(talk.ask("two"))

        run(story())

    def test_an_engine_thread_that_ends_is_unavailable(self, running: Looped) -> None:
        async def story() -> None:
            turn = await running.service.begin(ask_long())
            running.loop.post(_bug)
            with pytest.raises(Unavailable):
                await heard(turn)
            running.loop.join()
            with pytest.raises(Unavailable):
                await running.service.begin(ask_long())

        run(story())


def _bug() -> None:
    raise ZeroDivisionError


class TestRefusals:
    def test_names_of_nameless_conversations_are_nobodys(self, running: Looped) -> None:
        async def story() -> None:
            with pytest.raises(InvalidRequest) as refused:
                await running.service.begin(Talk("~ada").ask("one"))
            assert refused.value.param == "agent"
            await asked(running, Talk("~ada", exclusive=False).ask("one", max_tokens=1))

        run(story())

    @pytest.mark.parametrize(
        ("ask", "problem"),
        [
            (Ask(Identity(), Conversation(())), InvalidRequest),
            (Talk("ada").ask("many " * 9000), PromptTooLong),
            (Talk("ada").ask("one", stop=("",)), InvalidRequest),
            (Talk("ada").ask("one", max_tokens=-1), InvalidRequest),
        ],
    )
    def test_what_can_never_be_answered_is_refused(
        self, running: Looped, ask: Ask, problem: type[Exception]
    ) -> None:
        async def story() -> None:
            with pytest.raises(problem):
                await running.service.begin(ask)
            assert await places_taken(running) == 0

        run(story())

    def test_who_finds_no_place_in_time_is_refused(self, running: Looped) -> None:
        async def story() -> None:
            turn = await running.service.begin(ask_long())
            late = asyncio.create_task(running.service.begin(evolve(ask_long("bob"), timeout=5)))
            while await places_taken(running) != 2:
                pass
            running.world.clock.advance(6)
            with pytest.raises(Overloaded) as refused:
                await late
            assert refused.value.retry_after >= 1
            await turn.cancel()

        run(story())

    def test_nobody_waits_longer_than_the_service_allows(self, running: Looped) -> None:
        patient = running.service._prepared(evolve(ask_long(), timeout=1000.0))
        assert patient.deadline == running.world.clock.now + 60
        assert running.service._prepared(ask_long()).deadline == patient.deadline

    def test_a_turn_that_a_full_queue_refuses_is_not_even_rendered(self, running: Looped) -> None:
        unrenderable = Ask(Identity(), Conversation(()))

        async def story() -> None:
            turn = await running.service.begin(ask_long())
            waiting = [asyncio.create_task(running.service.begin(ask_long(name))) for name in "bc"]
            while await places_taken(running) != 3:
                pass
            with pytest.raises(Overloaded):
                await running.service.begin(unrenderable)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await turn.cancel()
            while await places_taken(running):
                pass
            with pytest.raises(InvalidRequest):
                await running.service.begin(unrenderable)

        run(story())

    def test_a_full_queue_refuses_at_once(self, running: Looped) -> None:
        async def story() -> None:
            turn = await running.service.begin(ask_long())
            waiting = [asyncio.create_task(running.service.begin(ask_long(name))) for name in "bc"]
            while await places_taken(running) != 3:
                pass
            with pytest.raises(Overloaded):
                await running.service.begin(ask_long("d"))
            for task in waiting:
                task.cancel()
            await turn.cancel()

        run(story())


class TestCancelling:
    def test_a_turn_gives_its_place_back(self, running: Looped) -> None:
        async def story() -> None:
            turn = await running.service.begin(ask_long())
            await turn.cancel()
            await turn.cancel()
            while await places_taken(running):
                pass
            with pytest.raises(TurnCancelled):
                await heard(turn)
            assert [event async for event in turn] == []  # it is over

        run(story())

    def test_whoever_listens_is_told(self, running: Looped) -> None:
        async def story() -> None:
            turn = await running.service.begin(ask_long())
            listening = asyncio.create_task(heard(turn))
            await asyncio.sleep(0)
            await turn.cancel()
            with pytest.raises(TurnCancelled):
                await listening

        run(story())

    def test_after_the_end_it_does_nothing(self, running: Looped) -> None:
        async def story() -> None:
            turn = await running.service.begin(Talk("ada").ask("one", max_tokens=1))
            await heard(turn)
            await turn.cancel()
            assert await places_taken(running) == 0

        run(story())

    def test_a_call_that_waits_for_its_place_is_cancelled_with_its_turn(
        self, running: Looped
    ) -> None:
        async def story() -> None:
            turn = await running.service.begin(ask_long())
            waiting = asyncio.create_task(running.service.begin(ask_long("bob")))
            while await places_taken(running) != 2:
                pass
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            while await places_taken(running) != 1:
                pass
            assert len(running.world.telemetry.started) == 1
            await turn.cancel()

        run(story())

    def test_so_is_one_whose_turn_is_not_even_queued(self, running: Looped) -> None:
        async def story() -> None:
            halt = Halt(running)
            begin = asyncio.create_task(running.service.begin(ask_long()))
            await halt.is_followed()
            begin.cancel()
            with pytest.raises(asyncio.CancelledError):
                await begin
            halt.go_on()
            while await places_taken(running):
                pass
            ended = running.world.telemetry.ended
            assert {one.finish for one in ended} <= {Finish.CANCELLED}

        run(story())

    def test_one_that_is_refused_after_it_was_cancelled_harms_nobody(self, running: Looped) -> None:
        async def story() -> None:
            halt = Halt(running)
            begin = asyncio.create_task(running.service.begin(Talk("a").ask("many " * 9000)))
            await halt.is_followed()
            begin.cancel()
            with pytest.raises(asyncio.CancelledError):
                await begin
            halt.go_on()
            assert await places_taken(running) == 0
            gc.collect()  # an error that nobody looked at would be told now

        run(story())

    def test_an_event_loop_that_ends_harms_nobody_else(self, running: Looped) -> None:
        async def leave() -> None:
            await running.service.begin(Talk("ada").ask("one", max_tokens=300))

        async def story() -> None:
            assert await asked(running, Talk("bob").ask("one", max_tokens=3))

        run(leave())
        run(story())


class TestTheModel:
    def test_it_is_told_by_name(self, running: Looped) -> None:
        assert running.service.models() == ("memory",)
        assert running.service.model is running.world.engine.card

    def test_before_it_is_loaded_there_is_none(self) -> None:
        world = World()
        loop = EngineLoop(world.assembly(), world.clock, world.telemetry)
        with pytest.raises(Unavailable, match="starting"):
            Service(loop, world.clock).models()


class TestHealth:
    def told(self, running: Looped) -> tuple[bool, bool, bool, object]:
        health = running.service.health()
        return health.live, health.ready, health.started, health.detail["phase"]

    def test_before_it_is_started_it_is_nothing(self) -> None:
        world = World()
        loop = EngineLoop(world.assembly(), world.clock, world.telemetry)
        assert self.told(Looped(world, loop, Service(loop, world.clock))) == (
            False,
            False,
            False,
            "starting",
        )

    def test_while_the_model_is_loaded_it_is_live(self) -> None:
        world = World()
        world.clock.advance(10 * STALLED_SECONDS)
        with world.disk.writes, looped(world) as running:
            assert self.told(running) == (True, False, False, "starting")
            world.disk.writes.release()
            running.loop.wait_open()
            world.disk.writes.acquire()

    def test_while_it_serves_it_is_ready(self, running: Looped) -> None:
        running.world.clock.advance(1)
        while not running.loop.beat:
            running.loop.ask(lambda _: None).result(PATIENCE)
        assert self.told(running) == (True, True, True, "serving")
        assert "store" not in running.service.health().detail

    def test_while_it_stands_still_it_is_not_live(self, running: Looped) -> None:
        running.world.clock.advance(1)
        while not running.loop.beat:
            running.loop.ask(lambda _: None).result(PATIENCE)
        halt = Halt(running)
        running.world.clock.advance(STALLED_SECONDS + 1)
        assert self.told(running) == (False, False, True, "serving")
        halt.go_on()

    def test_a_disk_that_cannot_be_written_is_told(self, running: Looped) -> None:
        async def story() -> None:
            running.world.disk.fail("put", OSError("broken"))
            await asked(running, Talk("ada").ask("one", max_tokens=1))
            health = running.service.health()
            assert health.ready
            assert health.detail["store"] == "read-only: broken"
            await asked(running, Talk("bob").ask("two", max_tokens=1))
            assert "store" not in running.service.health().detail

        run(story())

    def test_while_it_drains_it_is_not_ready(self, running: Looped) -> None:
        async def story() -> None:
            running.world.clock.advance(1)
            turn = await running.service.begin(ask_long())
            running.loop.stop(within=1000)
            await on_engine(running, lambda _: None)
            assert self.told(running) == (True, False, True, "draining")
            with pytest.raises(Unavailable, match="draining"):
                await running.service.begin(ask_long("bob"))
            await turn.cancel()

        run(story())

    def test_after_its_end_it_is_not_live(self, running: Looped) -> None:
        running.loop.stop(within=0)
        running.loop.join()
        assert self.told(running)[0::3] == (False, "stopped")

    def test_after_a_failure_it_is_not_live(self, running: Looped) -> None:
        running.loop.post(_bug)
        running.loop.join()
        assert self.told(running)[0::3] == (False, "failed")


class TestSteering:
    def test_a_bias_for_a_token_that_does_not_exist_is_refused(self, running: Looped) -> None:
        async def story() -> None:
            ask = evolve(Talk("ada").ask("one"), sampling=Sampling(logit_bias=((10**9, 1.0),)))
            with pytest.raises(InvalidRequest, match="there is no token 1000000000"):
                await running.service.begin(ask)

        run(story())

    def test_a_service_without_grammars_says_so(self, running: Looped) -> None:
        async def story() -> None:
            ask = evolve(Talk("ada").ask("one"), structure=Grammar('start: "a"'))
            with pytest.raises(InvalidRequest, match="cannot keep answers to a grammar"):
                await running.service.begin(ask)

        run(story())


def test_a_turn_that_was_asked_of_another_model_is_not_answered_by_this_one(
    running: Looped,
) -> None:
    async def story() -> None:
        with pytest.raises(Unavailable, match="swapping"):
            await running.service.begin(evolve(Talk("ada").ask("one"), model="another"))
        name = running.service.model.name
        await asked(running, evolve(Talk("ada").ask("one", max_tokens=1), model=name))

    run(story())
