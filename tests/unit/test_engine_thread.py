"""The engine's thread and the service over it: opening, draining, ending, and who is told what."""

import asyncio
import threading
from concurrent.futures import Future

import pytest

from agentcache.conductor import Conductor
from agentcache.domain.conversation import Conversation, Message
from agentcache.domain.errors import (
    HomeError,
    InvalidRequest,
    Overloaded,
    PromptTooLong,
    TurnFailed,
    Unavailable,
)
from agentcache.domain.events import Delta, Ended
from agentcache.domain.notices import Limits
from agentcache.domain.request import Finish, Identity, Miss
from agentcache.loop import STALLED_SECONDS, EngineLoop
from agentcache.service import Ask, RunningTurn, Service
from tests.talks import Talk
from tests.world import PATIENCE, Looped, World, looped


async def told(turn: RunningTurn) -> tuple[str, Ended]:
    """The whole answer, and how it ended."""
    text = ""
    async for event in turn:
        if isinstance(event, Ended):
            return text, event
        assert isinstance(event, Delta)
        text += event.text
    raise AssertionError("the turn never ended")


async def say(service: Service, talk: Talk, text: str, **fields: object) -> tuple[str, Ended]:
    turn = await service.begin(talk.ask(text, max_tokens=4, **fields))
    answer, ended = await told(turn)
    talk.hear(answer)
    return answer, ended


async def counted(it: Looped, what: str) -> int:
    """How many turns are `waiting` or `running`, as the engine thread has it."""
    asked = it.loop.ask(lambda conductor: int(getattr(conductor.planner, what)))
    return await asyncio.wrap_future(asked)


def opened(world: World) -> Looped:
    """A loop over `world` that has not been started."""
    loop = EngineLoop(world.assembly(), world.clock, world.telemetry)
    return Looped(world, loop, Service(loop, world.clock))


class TestOpening:
    def test_what_keeps_it_from_opening_is_raised_where_it_is_waited_for(self) -> None:
        def assemble(_post: object) -> Conductor:
            raise HomeError("/somewhere", "it is broken")

        loop = EngineLoop(assemble, World().clock, World().telemetry)
        loop.start()
        with pytest.raises(HomeError, match="it is broken"):
            loop.wait_open()
        loop.join()
        assert loop.phase == "failed"

    def test_nothing_is_served_before_it_is_open(self) -> None:
        it = opened(World())
        with pytest.raises(Unavailable, match="starting"):
            it.service.models()
        health = it.service.health()
        assert (health.live, health.ready, health.started) == (False, False, False)

    def test_a_loop_that_was_never_started_can_be_joined(self) -> None:
        it = opened(World())
        it.loop.join()
        assert not it.loop.is_alive()

    def test_it_is_live_ready_and_started_once_it_is_open(self) -> None:
        with looped(World()) as it:
            it.loop.wait_open()
            it.loop.ask(lambda conductor: conductor.is_idle).result(PATIENCE)
            assert it.service.health().ready
            assert it.service.models() == (it.service.model.name,)


class TestEnding:
    def test_who_asks_afterwards_is_told_that_it_has_stopped(self) -> None:
        with looped(World()) as it:
            it.loop.wait_open()
        answer = it.loop.ask(lambda conductor: conductor.is_idle)
        with pytest.raises(Unavailable, match="stopped"):
            answer.result(PATIENCE)
        assert not it.service.health().live

    def test_a_question_that_was_taken_back_is_not_asked(self) -> None:
        with looped(World()) as it:
            it.loop.wait_open()
            entered, leave = threading.Event(), threading.Event()

            def block(_conductor: Conductor) -> None:
                entered.set()
                assert leave.wait(PATIENCE)

            blocked = it.loop.ask(block)
            assert entered.wait(PATIENCE)
            asked: list[Conductor] = []
            taken_back: Future[None] = it.loop.ask(asked.append)
            assert taken_back.cancel()
            leave.set()
            blocked.result(PATIENCE)
        assert asked == []

    def test_a_crash_tells_everybody_who_waits(self, caplog: pytest.LogCaptureFixture) -> None:
        def crash() -> None:
            raise KeyError("a bug")

        async def scene(it: Looped) -> None:
            turn = await it.service.begin(Talk("a").ask("hello", max_tokens=4000))
            it.loop.post(crash)
            with pytest.raises(Unavailable, match="failed"):
                await told(turn)

        with looped(World()) as it:
            it.loop.wait_open()
            asyncio.run(scene(it))
            it.loop.join()
            assert it.loop.phase == "failed"
            assert isinstance(it.loop.problem, KeyError)
            assert not it.service.health().live
        assert "the engine thread ends" in caplog.text

    def test_draining_lets_running_turns_finish_and_takes_no_more(self) -> None:
        async def scene(it: Looped) -> None:
            turn = await it.service.begin(Talk("a").ask("hello", max_tokens=300))
            it.loop.stop(within=PATIENCE)
            _, ended = await told(turn)
            assert ended.finish is Finish.LENGTH
            assert ended.completion == 300
            with pytest.raises(Unavailable):
                await it.service.begin(Talk("b").ask("hello"))

        with looped(World()) as it:
            it.loop.wait_open()
            asyncio.run(scene(it))

    def test_at_the_end_of_its_patience_running_turns_are_cut_off_and_told_so(self) -> None:
        async def scene(it: Looped) -> None:
            turn = await it.service.begin(Talk("a").ask("hello", max_tokens=8000))
            it.loop.stop(within=0)
            with pytest.raises(Unavailable, match="draining"):
                await told(turn)

        with looped(World()) as it:
            it.loop.wait_open()
            asyncio.run(scene(it))
            it.loop.join()
            assert it.loop.phase == "stopped"

    def test_a_turn_that_waits_when_draining_begins_is_refused(self) -> None:
        async def scene(it: Looped) -> None:
            first = await it.service.begin(Talk("a").ask("hello", max_tokens=2000))
            second = asyncio.create_task(it.service.begin(Talk("b").ask("hello")))
            while await counted(it, "waiting") == 0:
                pass
            it.loop.stop(within=PATIENCE)
            with pytest.raises(Unavailable, match="draining"):
                await second
            await told(first)

        with looped(World(limits=Limits(batch=1))) as it:
            it.loop.wait_open()
            asyncio.run(scene(it))


class TestTurns:
    def test_an_agent_is_remembered_from_turn_to_turn(self) -> None:
        async def scene(it: Looped) -> None:
            talk = Talk("a", system="You remember " + "many things " * 20)
            await say(it.service, talk, "hello")
            _, ended = await say(it.service, talk, "and now?")
            assert ended.cached > 0.9 * (ended.prompt - 20)

        with looped(World()) as it:
            it.loop.wait_open()
            asyncio.run(scene(it))

    def test_an_answer_of_which_nobody_knows_is_a_miss(self) -> None:
        async def scene(it: Looped) -> None:
            talk = Talk("a", history=[Message("user", "hi"), Message("assistant", "ho")])
            turn = await it.service.begin(talk.ask("well?", max_tokens=2))
            assert turn.admitted.miss is Miss.NO_SESSION
            await told(turn)

        with looped(World()) as it:
            it.loop.wait_open()
            asyncio.run(scene(it))

    def test_the_same_agent_on_another_model_is_a_miss_that_says_so(self) -> None:
        talk = Talk("a")
        world = World()
        with world:
            world.say(talk, "hello")
            world.settle()
        world.digest = b"another model"

        async def scene(it: Looped) -> None:
            turn = await it.service.begin(talk.ask("well?", max_tokens=2))
            assert turn.admitted.miss is Miss.MODEL_CHANGED
            await told(turn)

        with looped(world) as it:
            it.loop.wait_open()
            asyncio.run(scene(it))

    @pytest.mark.parametrize("history", [[], [Message("user", "x"), Message("assistant", "y")]])
    def test_nobody_in_particular_may_speak(self, history: list[Message]) -> None:
        async def scene(it: Looped) -> None:
            _, ended = await say(it.service, Talk(None, history=list(history)), "hello")
            assert ended.finish is Finish.LENGTH

        with looped(World()) as it:
            it.loop.wait_open()
            asyncio.run(scene(it))

    def test_names_of_the_nameless_cannot_be_given(self) -> None:
        async def scene(it: Looped) -> None:
            with pytest.raises(InvalidRequest, match="kept for conversations without a name"):
                await it.service.begin(Talk("~a").ask("hello"))

        with looped(World()) as it:
            it.loop.wait_open()
            asyncio.run(scene(it))

    def test_a_prompt_that_never_fits_is_refused_with_what_fits(self) -> None:
        async def scene(it: Looped) -> None:
            with pytest.raises(PromptTooLong) as refused:
                await it.service.begin(Talk("a").ask("word " * 5000))
            assert refused.value.limit == 511
            assert refused.value.tokens > 511

        with looped(World(context=512)) as it:
            it.loop.wait_open()
            asyncio.run(scene(it))

    def test_who_waits_longer_than_asked_is_refused(self) -> None:
        async def scene(it: Looped) -> None:
            first = await it.service.begin(Talk("a").ask("hello", max_tokens=3000))
            with pytest.raises(Overloaded) as refused:
                await it.service.begin(Talk("b").ask("hello", timeout=0.0))
            assert refused.value.retry_after >= 1
            await first.cancel()

        with looped(World(limits=Limits(batch=1))) as it:
            it.loop.wait_open()
            asyncio.run(scene(it))

    def test_who_goes_away_before_the_turn_has_its_place_leaves_the_queue(self) -> None:
        async def scene(it: Looped) -> None:
            first = await it.service.begin(Talk("a").ask("hello", max_tokens=8000))
            second = asyncio.create_task(it.service.begin(Talk("b").ask("hello")))
            while await counted(it, "waiting") == 0:
                pass
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            while await counted(it, "waiting"):
                pass
            await first.cancel()
            await first.cancel()  # twice is once
            while await counted(it, "running"):
                pass

        with looped(World(limits=Limits(batch=1))) as it:
            it.loop.wait_open()
            asyncio.run(scene(it))

    def test_a_failure_of_the_engine_is_told_before_and_after_the_turn_has_its_place(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def scene(it: Looped) -> None:
            engine = it.world.engine
            engine.frailty.fail("collect", RuntimeError("broken"))
            turn = await it.service.begin(Talk("a").ask("hello"))
            with pytest.raises(TurnFailed, match="RuntimeError"):
                await told(turn)
            talk = Talk("b", system="some words " * 30)
            await say(it.service, talk, "hello")
            it.loop.ask(lambda conductor: conductor.planner.hot.drop_resting()).result(PATIENCE)
            engine.frailty.fail("adopt", MemoryError("no room"))
            with pytest.raises(TurnFailed, match="MemoryError"):
                await it.service.begin(talk.ask("again", max_tokens=4))

        with looped(World()) as it:
            it.loop.wait_open()
            asyncio.run(scene(it))
        assert "failed" in caplog.text


class TestHealth:
    def test_a_home_that_cannot_be_written_is_said(self) -> None:
        async def scene(it: Looped) -> None:
            it.world.disk.fail("put", [OSError("the disk is gone")] * 4)
            await say(it.service, Talk("a"), "hello")
            health = it.service.health()
            assert health.ready
            assert "read-only" in str(health.detail["store"])
            it.world.disk.recover()
            await say(it.service, Talk("b"), "hello")
            assert "store" not in it.service.health().detail

        with looped(World()) as it:
            it.loop.wait_open()
            asyncio.run(scene(it))

    def test_an_engine_that_hangs_is_not_live(self) -> None:
        with looped(World()) as it:
            it.loop.wait_open()
            it.world.clock.advance(1.0)
            entered, leave = threading.Event(), threading.Event()

            def hang(_conductor: Conductor) -> None:
                entered.set()
                assert leave.wait(PATIENCE)

            it.loop.ask(lambda conductor: conductor.is_idle).result(PATIENCE)
            while not it.loop.beat:
                it.loop.ask(lambda conductor: conductor.is_idle).result(PATIENCE)
            hung = it.loop.ask(hang)
            assert entered.wait(PATIENCE)
            it.world.clock.advance(STALLED_SECONDS + 1)
            assert not it.service.health().live
            leave.set()
            hung.result(PATIENCE)


def test_an_exclusive_identity_needs_a_name() -> None:
    with pytest.raises(InvalidRequest, match="only an agent with a name"):
        Identity(None, exclusive=True)


def test_a_conversation_without_messages_is_refused() -> None:
    async def scene(it: Looped) -> None:
        with pytest.raises(InvalidRequest):
            await it.service.begin(Ask(Identity("a", exclusive=True), Conversation(())))

    with looped(World()) as it:
        it.loop.wait_open()
        asyncio.run(scene(it))
