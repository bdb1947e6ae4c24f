"""One model in place of another, while turns run: over the real service and engine thread."""

import asyncio
import threading

import pytest

from agentcache.adapters.prometheus.metrics import PrometheusTelemetry
from agentcache.domain.errors import ModelError, Unavailable
from agentcache.domain.notices import Limits
from agentcache.domain.request import Finish, Miss, Tier
from agentcache.loop import STALLED_SECONDS
from tests.talks import Talk
from tests.two_models import LONG, Swapped, begun, notes, say, told, two_models
from tests.world import PATIENCE


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
