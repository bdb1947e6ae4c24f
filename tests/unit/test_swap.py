"""One model in place of another, while turns run: over the real service and engine thread."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve, field

from agentcache.adapters.memory.model_source import MemoryModelSource
from agentcache.adapters.memory.tokenizer import END, VOCABULARY, MemoryTokenizer
from agentcache.adapters.prometheus.metrics import PrometheusTelemetry
from agentcache.domain.errors import InvalidRequest, ModelError, Unavailable
from agentcache.domain.events import Admitted, Ended
from agentcache.domain.notices import Limits
from agentcache.domain.request import Finish, Miss, Tier
from agentcache.loop import EngineLoop
from agentcache.model_shelf import ModelShelf
from agentcache.ports.model_source import ModelFolder
from agentcache.service import STALLED_SECONDS, RunningTurn, Service
from tests.frail import FrailEngine
from tests.talks import Talk
from tests.world import PATIENCE, World

LONG = 8000  # tokens of an answer that is not over before a test says so


@define(eq=False)
class Swapped:
    """A service of two models, `memory` and `other`, and what was loaded so far."""

    world: World
    loop: EngineLoop
    service: Service
    source: MemoryModelSource
    engines: "list[weakref.ref[FrailEngine]]" = field(factory=list, init=False)
    before_load: Callable[[str], Any] = field(default=lambda _ref: None, init=False)

    def open_engine(self, folder: ModelFolder) -> FrailEngine:
        """Load it; what `before_load` raises comes when half of it is there."""
        engine = FrailEngine.of(
            name=folder.ref, digest=folder.digest, vocabulary=VOCABULARY, ends=frozenset({END})
        )
        assert isinstance(engine, FrailEngine)
        self.engines.append(weakref.ref(engine))
        self.before_load(folder.ref)
        return engine

    @property
    def alive(self) -> int:
        """How many of the engines there were are still in memory."""
        gc.collect()
        return sum(engine() is not None for engine in self.engines)


@contextmanager
def two_models(**fields: Any) -> Iterator[Swapped]:
    world = World(**fields)
    world.codec.reads = world.disk.reads
    folders = [ModelFolder(ref, Path(ref), ref.encode()) for ref in ("memory", "other", "third")]
    source = MemoryModelSource(folders)

    def open_engine(folder: ModelFolder) -> FrailEngine:
        return it.open_engine(folder)

    first = evolve(world.assembly(), load_engine=lambda: open_engine(folders[0]))
    loop = EngineLoop(first, world.clock, world.telemetry, debug=True)
    shelf = ModelShelf(source, first, open_engine, lambda _: MemoryTokenizer())
    it = Swapped(world, loop, Service(loop, world.clock, 60.0, shelf), source)
    loop.start()
    try:
        loop.wait_open()
        yield it
    finally:
        loop.stop(within=0)
        loop.join()


async def told(turn: RunningTurn) -> Ended:
    async for event in turn:
        if isinstance(event, Ended):
            return event
    raise AssertionError("the turn never ended")


async def say(it: Swapped, talk: Talk, text: str) -> Admitted:
    turn = await it.service.begin(talk.ask(text, max_tokens=4))
    await hear(turn, talk)
    return turn.admitted


async def hear(turn: RunningTurn, talk: Talk) -> None:
    text = ""
    async for event in turn:
        if not isinstance(event, Ended):
            text += event.text
    talk.hear(text)


async def begun(it: Swapped, swap: "asyncio.Task[Any]") -> None:
    """Return when turns are refused because of the swap."""
    while it.loop.phase != "swapping":
        assert not swap.done()
        await asyncio.sleep(0)


def notes() -> Talk:
    return Talk("ann", system="You remember " + "many things " * 20)


class TestSwapping:
    def test_another_model_is_served_and_the_agents_of_the_first_find_all_when_it_is_back(
        self,
    ) -> None:
        async def scene(it: Swapped) -> None:
            talk = notes()
            await say(it, talk, "hello")
            assert (await it.service.swap("other")).name == "other"
            assert it.service.models() == ("other",)
            other = Talk("ann", system=talk.system, history=list(talk.history))
            assert (await say(it, other, "who are you?")).miss is Miss.MODEL_CHANGED
            assert (await it.service.swap("memory")).name == "memory"
            admitted = await say(it, talk, "and now?")
            assert admitted.miss is Miss.NONE
            assert admitted.tier is Tier.WARM
            assert admitted.cached > 0.8 * admitted.prompt

        with two_models() as it:
            asyncio.run(scene(it))
            assert it.alive == 1

    def test_nothing_of_a_model_is_left_when_the_next_one_is_loaded(self) -> None:
        async def scene(it: Swapped) -> None:
            before: list[int] = []
            it.before_load = lambda _ref: before.append(it.alive)
            for ref in ("other", "third", "memory"):
                await say(it, notes(), "hello")
                await it.service.swap(ref)
            assert before == [1, 1, 1]  # the one that is being loaded

        with two_models() as it:
            asyncio.run(scene(it))

    def test_a_model_is_closed_before_the_next_one_is_loaded(self) -> None:
        async def scene(it: Swapped) -> None:
            old, closed = it.engines[0](), list[bool]()
            assert old is not None
            it.before_load = lambda _ref: closed.append(old.closed)
            await it.service.swap("other")
            assert closed == [True]

        with two_models() as it:
            asyncio.run(scene(it))

    def test_a_model_that_is_served_already_is_not_loaded_again(self) -> None:
        async def scene(it: Swapped) -> None:
            assert (await it.service.swap("memory")).name == "memory"
            assert len(it.engines) == 1

        with two_models() as it:
            asyncio.run(scene(it))

    def test_a_turn_that_runs_is_waited_for_and_no_other_is_taken(self) -> None:
        async def scene(it: Swapped) -> None:
            running = await it.service.begin(Talk("a").ask("hello", max_tokens=2000))
            waiting = asyncio.create_task(it.service.begin(Talk("b").ask("hello")))
            while not await asyncio.wrap_future(it.loop.ask(lambda one: one.planner.waiting)):
                pass
            swap = asyncio.create_task(it.service.swap("other", within=PATIENCE))
            await begun(it, swap)
            with pytest.raises(Unavailable, match="swapping"):
                await it.service.begin(Talk("c").ask("hello"))
            with pytest.raises(Unavailable, match="swapping") as refused:
                await waiting
            assert refused.value.retry_after >= 1
            ended = await told(running)
            assert (ended.finish, ended.completion) == (Finish.LENGTH, 2000)
            assert (await swap).name == "other"

        with two_models(limits=Limits(batch=1)) as it:
            asyncio.run(scene(it))

    def test_a_turn_that_runs_too_long_is_told_why_and_its_retry_goes_on_from_what_is_kept(
        self,
    ) -> None:
        async def scene(it: Swapped) -> None:
            talk = notes()
            turn = await it.service.begin(talk.ask("tell me all", max_tokens=LONG))
            talk.take_back()
            await it.service.swap("other", within=0)
            with pytest.raises(Unavailable, match="swapping; retry in"):
                await told(turn)
            await it.service.swap("memory")
            admitted = await say(it, talk, "tell me all")
            assert admitted.prompt - admitted.cached <= 1

        with two_models() as it:
            asyncio.run(scene(it))

    def test_a_turn_that_was_prepared_for_the_old_model_is_not_given_to_the_new_one(self) -> None:
        async def scene(it: Swapped) -> None:
            request = it.service._prepared(Talk("a").ask("hello"))
            await it.service.swap("other")
            submitted = it.loop.submit(request, lambda _event: None)
            with pytest.raises(Unavailable, match="swapping"):
                await asyncio.wrap_future(submitted)

        with two_models() as it:
            asyncio.run(scene(it))

    def test_whoever_cancels_a_turn_of_the_old_model_cancels_none_of_the_new_one(self) -> None:
        async def scene(it: Swapped) -> None:
            old = await it.service.begin(Talk("a").ask("hello", max_tokens=LONG))
            await it.service.swap("other", within=0)
            new = await it.service.begin(Talk("a").ask("hello", max_tokens=3))
            assert old._ticket.number == new._ticket.number
            it.loop.cancel(old._ticket)
            assert (await told(new)).finish is Finish.LENGTH

        with two_models() as it:
            asyncio.run(scene(it))

    def test_agents_that_the_home_cannot_take_now_are_still_known_afterwards(self) -> None:
        async def scene(it: Swapped) -> None:
            talk = notes()
            it.world.disk.fail("put", [OSError("no disk")] * 9)
            await say(it, talk, "hello")
            await it.service.swap("other")
            await it.service.swap("memory")
            assert (await say(it, talk, "and now?")).miss is Miss.NONE

        with two_models() as it:
            asyncio.run(scene(it))

    def test_while_a_model_is_loaded_the_process_is_live_but_not_ready(self) -> None:
        async def scene(it: Swapped) -> None:
            await say(it, Talk("a"), "hello")
            entered, leave = threading.Event(), threading.Event()

            def wait(_ref: str) -> None:
                entered.set()
                assert leave.wait(PATIENCE)

            it.before_load = wait
            swap = asyncio.create_task(it.service.swap("other"))
            await asyncio.to_thread(entered.wait, PATIENCE)
            it.world.clock.advance(STALLED_SECONDS + 1)
            health = it.service.health()
            assert (health.live, health.ready, health.detail["phase"]) == (True, False, "swapping")
            with pytest.raises(Unavailable, match="swapping"):
                await it.service.begin(Talk("b").ask("hello"))
            leave.set()
            await swap
            health = it.service.health()
            assert (health.live, health.ready) == (True, True)

        with two_models() as it:
            asyncio.run(scene(it))


class TestCounting:
    """The metrics of swaps move, each by its outcome."""

    def moved(self, it: Swapped) -> dict[str, float]:
        assert isinstance(it.world.telemetry, PrometheusTelemetry)
        found = it.world.telemetry.registry.collect()
        samples = next(one.samples for one in found if one.name == "agentcache_swap_seconds")
        seen = ("agentcache_swap_seconds_count", "agentcache_swap_seconds_sum")
        return {
            f"{one.labels['outcome']} {one.name.rpartition('_')[2]}": one.value
            for one in samples
            if one.name in seen and one.value
        }

    def test_a_swap_that_is_made_and_one_that_is_not(self) -> None:
        def fail(ref: str) -> None:
            it.world.clock.advance(4.0)
            if ref == "third":
                raise ModelError("third", "is broken")

        async def scene(it: Swapped) -> None:
            it.before_load = fail
            await it.service.swap("other")
            assert self.moved(it) == {"done count": 1, "done sum": 4.0}
            with pytest.raises(ModelError):
                await it.service.swap("third")
            moved = self.moved(it)
            assert (moved["failed count"], moved["failed sum"]) == (1, 8.0)  # two were loaded

        with two_models(telemetry=PrometheusTelemetry()) as it:
            asyncio.run(scene(it))

    def test_a_swap_that_the_end_comes_before(self) -> None:
        async def scene(it: Swapped) -> None:
            await it.service.begin(Talk("a").ask("hello", max_tokens=LONG))
            swap = asyncio.create_task(it.service.swap("other", within=1000))
            await begun(it, swap)
            it.loop.stop(within=0)
            with pytest.raises(Unavailable, match="draining"):
                await swap
            assert self.moved(it)["interrupted count"] == 1

        with two_models(telemetry=PrometheusTelemetry()) as it:
            asyncio.run(scene(it))

    def test_one_that_is_refused_is_none(self) -> None:
        async def scene(it: Swapped) -> None:
            with pytest.raises(ModelError):
                await it.service.swap("nowhere")
            assert self.moved(it) == {}

        with two_models(telemetry=PrometheusTelemetry()) as it:
            asyncio.run(scene(it))


class TestFailing:
    @pytest.mark.parametrize(
        "problem", [ModelError("other", "is broken"), MemoryError("no room"), KeyError("layers")]
    )
    def test_a_model_that_cannot_be_loaded_leaves_the_old_one_serving(
        self, problem: Exception
    ) -> None:
        def fail(ref: str) -> None:
            if ref == "other":
                raise problem

        async def scene(it: Swapped) -> None:
            talk = notes()
            await say(it, talk, "hello")
            it.before_load = fail
            with pytest.raises(ModelError):
                await it.service.swap("other")
            assert it.service.health().ready
            admitted = await say(it, talk, "and now?")
            assert (admitted.tier, admitted.miss) == (Tier.WARM, Miss.NONE)
            it.before_load = lambda _ref: None
            assert (await it.service.swap("other")).name == "other"

        with two_models() as it:
            asyncio.run(scene(it))
            assert it.alive == 1

    def test_a_model_that_is_not_to_be_found_disturbs_nobody(self) -> None:
        async def scene(it: Swapped) -> None:
            turn = await it.service.begin(Talk("a").ask("hello", max_tokens=300))
            with pytest.raises(ModelError, match="there is no such model"):
                await it.service.swap("nowhere", within=0)
            assert it.loop.phase == "serving"
            assert (await told(turn)).finish is Finish.LENGTH

        with two_models() as it:
            asyncio.run(scene(it))

    def test_a_model_that_cannot_be_spoken_to_disturbs_nobody(self) -> None:
        def unspeakable(_folder: ModelFolder) -> MemoryTokenizer:
            raise ModelError("other", "has no tokenizer")

        async def scene(it: Swapped) -> None:
            turn = await it.service.begin(Talk("a").ask("hello", max_tokens=300))
            with pytest.raises(ModelError, match="no tokenizer"):
                await it.service.swap("other", within=0)
            assert (await told(turn)).finish is Finish.LENGTH

        with two_models() as it:
            assert it.service._shelf is not None
            it.service._shelf = evolve(it.service._shelf, open_tokenizer=unspeakable)
            asyncio.run(scene(it))

    def test_where_neither_model_can_be_loaded_everybody_is_told_and_the_home_is_closed(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(ref: str) -> None:
            raise ModelError(ref, "is gone")

        async def scene(it: Swapped) -> None:
            it.before_load = fail
            with pytest.raises(Unavailable, match="failed"):
                await it.service.swap("other")
            it.loop.join()
            assert not it.service.health().live
            with pytest.raises(Unavailable, match="failed"):
                await it.service.begin(Talk("a").ask("hello"))
            with pytest.raises(ValueError, match="closed"):
                it.world.disk.sessions.load()

        with two_models() as it:
            asyncio.run(scene(it))
        assert "the engine thread ends" in caplog.text

    @pytest.mark.parametrize("within", [-1.0, float("nan"), float("inf"), 1e9])
    def test_a_deadline_that_is_none_is_refused(self, within: float) -> None:
        async def scene(it: Swapped) -> None:
            with pytest.raises(InvalidRequest, match="within"):
                await it.service.swap("other", within)

        with two_models() as it:
            asyncio.run(scene(it))

    def test_a_service_without_a_shelf_cannot_swap(self) -> None:
        async def scene(it: Swapped) -> None:
            with pytest.raises(ModelError, match="cannot change its model"):
                await Service(it.loop, it.world.clock).swap("other")

        with two_models() as it:
            asyncio.run(scene(it))


class TestAtOnce:
    def test_of_two_swaps_at_once_one_is_made_and_the_other_refused(self) -> None:
        async def scene(it: Swapped) -> None:
            turn = await it.service.begin(Talk("a").ask("hello", max_tokens=LONG))
            swaps = [it.service.swap(ref, within=PATIENCE) for ref in ("other", "third")]
            tasks = [asyncio.create_task(swap) for swap in swaps]
            first, *_ = (await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))[0]
            with pytest.raises(Unavailable, match="swapping"):
                await first
            await turn.cancel()
            (other,) = set(tasks) - {first}
            assert (await other).name == it.service.model.name

        with two_models() as it:
            asyncio.run(scene(it))

    def test_a_swap_that_is_stopped_while_turns_run_is_not_made(self) -> None:
        async def scene(it: Swapped) -> None:
            turn = await it.service.begin(Talk("a").ask("hello", max_tokens=2000))
            swap = asyncio.create_task(it.service.swap("other", within=PATIENCE))
            await begun(it, swap)
            it.loop.stop(within=PATIENCE)
            with pytest.raises(Unavailable, match="draining"):
                await swap
            assert (await told(turn)).finish is Finish.LENGTH
            it.loop.join()
            assert len(it.engines) == 1

        with two_models() as it:
            asyncio.run(scene(it))

    def test_a_swap_that_is_stopped_while_a_model_is_loaded_ends_with_the_loop(self) -> None:
        async def scene(it: Swapped) -> None:
            it.before_load = lambda _ref: it.loop.stop(within=0)
            await it.service.swap("other")
            it.loop.join()
            assert it.loop.phase == "stopped"

        with two_models() as it:
            asyncio.run(scene(it))

    def test_whoever_does_not_wait_for_the_swap_does_not_undo_it(self) -> None:
        async def scene(it: Swapped) -> None:
            turn = await it.service.begin(Talk("a").ask("hello", max_tokens=LONG))
            swap = asyncio.create_task(it.service.swap("other", within=PATIENCE))
            await begun(it, swap)
            swap.cancel()
            with pytest.raises(asyncio.CancelledError):
                await swap
            await turn.cancel()
            while it.loop.phase != "serving":
                await asyncio.wrap_future(it.loop.ask(lambda _conductor: None))
            assert it.service.model.name == "other"

        with two_models() as it:
            asyncio.run(scene(it))
