"""What is asked of a world that is run by hand, besides turns: changes of agents, other models."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import TypeVar, cast

from attrs import define, field

from agentcache.agents import Agents
from agentcache.conductor import Conductor
from agentcache.domain.errors import Unavailable
from agentcache.domain.spec import CacheSpec
from agentcache.fetcher import Fetcher
from agentcache.loop import EngineLoop
from tests.world import World

T = TypeVar("T")
PATIENCE = 10_000  # times that everybody is given the chance to go on


@define(eq=False)
class ByHand:
    """The engine loop as far as changes of agents need it: what is asked is done in a step."""

    world: World
    _asked: asyncio.Event = field(factory=asyncio.Event, init=False)

    @property
    def conductor(self) -> Conductor:
        """That of the world."""
        return self.world.conductor

    async def asked_or(self, task: "asyncio.Task[T]") -> None:
        """Return when something is asked, or `task` is done."""
        asked = asyncio.ensure_future(self._asked.wait())
        await asyncio.wait((asked, task), return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()

    def ask(self, call: Callable[[Conductor], T]) -> "Future[T]":
        """As the engine loop does."""
        answer: Future[T] = Future()

        def run() -> None:
            try:
                answer.set_result(call(self.world.conductor))
            except Exception as error:
                answer.set_exception(error)

        self._asked.set()
        self.world._inbox.post(run)
        return answer


def change(world: World, what: Callable[[Agents], Coroutine[object, object, T]]) -> T:
    """Do something to an agent; the world goes on until it is done. Raises what it raises."""
    return asyncio.run(_change(world, what))


async def _change(world: World, what: Callable[[Agents], Coroutine[object, object, T]]) -> T:
    loop = ByHand(world)
    task = asyncio.ensure_future(what(Agents(cast(EngineLoop, loop), world.clock)))
    await loop.asked_or(task)  # what it does on other threads before changes nothing
    for _ in range(PATIENCE):
        for _ in range(5):
            await asyncio.sleep(0)  # from future to future
        if task.done():
            return task.result()
        world.step()
    raise AssertionError("the change is never made")


def drain(world: World) -> None:
    """Refuse the turns that wait, and let the others end, as before a swap."""
    world.conductor.planner.refuse_waiting(Unavailable("swapping"))
    world.conductor.compactor.rest()
    world.settle()


def swap(world: World, digest: bytes, spec: CacheSpec) -> None:
    """Let another model take the place of the drained world's, as the engine loop does."""
    old, keeper = world.conductor, world.conductor.keeper
    old.dismiss()
    world.digest, world.spec = digest, spec
    world.conductor = world.assembly().succeed(keeper, old.roots.salt, world._inbox.post)
    if world.steady:
        fetcher = world.conductor.fetcher
        fetcher.close()
        fetcher = Fetcher(fetcher.spec, fetcher.store, threads=1)
        world.conductor.fetcher = world.conductor.compactor.fetcher = fetcher
