"""Swaps that fail, come too late, or at the same time: somebody always serves, or says why not."""

import asyncio

import pytest
from attrs import evolve

from agentcache.adapters.memory.tokenizer import MemoryTokenizer
from agentcache.conductor import Conductor
from agentcache.domain.errors import InvalidRequest, ModelError, Unavailable
from agentcache.domain.request import Finish, Miss, Tier
from agentcache.domain.turn import TurnState
from agentcache.ports.engine import ModelCard
from agentcache.ports.grammar import Grammars
from agentcache.ports.model_source import ModelFolder
from agentcache.service import Service
from tests.frail import FrailEngine
from tests.talks import Talk
from tests.two_models import LONG, Swapped, begun, notes, say, told, two_models
from tests.world import PATIENCE


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

    def test_a_model_that_cannot_be_closed_makes_way_all_the_same(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def scene(it: Swapped) -> None:
            old = it.engines[0]()
            assert old is not None
            old.frailty.fail("close", RuntimeError("the device is gone"))
            del old
            talk = notes()
            await say(it, talk, "hello")
            assert (await it.service.swap("other")).name == "other"
            await say(it, Talk("bob"), "hello")
            await it.service.swap("memory")
            assert (await say(it, talk, "and now?")).miss is Miss.NONE

        with two_models() as it:
            asyncio.run(scene(it))
            assert it.alive == 1
        assert "the model could not be closed" in caplog.text

    def test_a_model_whose_grammars_cannot_be_made_is_closed_again_and_the_old_one_serves(
        self,
    ) -> None:
        made: list[FrailEngine] = []

        def fail(_tokenizer: object, card: ModelCard) -> Grammars:
            made.extend(one for ref in it.engines if (one := ref()) and one.card is card)
            raise RuntimeError("its tokens cannot be told apart")

        async def scene(it: Swapped) -> None:
            shelf, talk = it.service._shelf, notes()
            assert shelf is not None
            it.service._shelf = evolve(shelf, assembly=evolve(shelf.assembly, open_grammars=fail))
            await say(it, talk, "hello")
            with pytest.raises(ModelError):
                await it.service.swap("other")
            assert [one.closed for one in made] == [True]
            made.clear()
            assert it.service.health().ready
            assert (await say(it, talk, "and now?")).miss is Miss.NONE

        with two_models() as it:
            asyncio.run(scene(it))
            assert it.alive == 1

    def test_a_turn_that_is_being_restored_at_the_deadline_is_cut_off_and_the_swap_is_made(
        self,
    ) -> None:
        async def scene(it: Swapped) -> None:
            talk = notes()
            await say(it, talk, "hello")
            await asyncio.wrap_future(it.loop.ask(lambda one: one.planner.hot.drop_resting()))
            with it.world.disk.reads:
                turn = asyncio.create_task(it.service.begin(talk.ask("again", max_tokens=LONG)))
                talk.take_back()
                await restoring(it)
                swap = asyncio.create_task(it.service.swap("other", within=0))
                await begun(it, swap)
            with pytest.raises(Unavailable, match="swapping"):
                await turn
            assert (await swap).name == "other"
            await it.service.swap("memory")
            assert (await say(it, talk, "and now?")).miss is Miss.NONE

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

    def test_nothing_is_swapped_when_the_end_has_begun(self) -> None:
        async def scene(it: Swapped) -> None:
            turn = await it.service.begin(Talk("a").ask("hello", max_tokens=LONG))
            it.loop.stop(within=PATIENCE)
            assert it.service._shelf is not None
            found = await asyncio.wrap_future(it.service._shelf.find("other"))
            late = it.loop.swap(found.assembly, within=0)
            with pytest.raises(Unavailable, match="draining"):
                await asyncio.wrap_future(late)
            with pytest.raises(Unavailable, match="draining"):
                await it.service.swap("other")
            await turn.cancel()
            assert len(it.engines) == 1

        with two_models() as it:
            asyncio.run(scene(it))


async def restoring(it: Swapped) -> None:
    """Return when the rows of some turn are being fetched."""

    def is_fetching(conductor: Conductor) -> bool:
        turns = conductor.planner.turns.values()
        return any(turn.state is TurnState.FETCHING for turn in turns)

    while not await asyncio.wrap_future(it.loop.ask(is_fetching)):
        pass
