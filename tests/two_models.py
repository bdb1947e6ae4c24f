"""A service that knows several models, and what tests of swaps ask of it."""

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import define, evolve, field

from agentcache.adapters.memory.model_source import MemoryModelSource
from agentcache.adapters.memory.tokenizer import END, VOCABULARY, MemoryTokenizer
from agentcache.domain.events import Admitted, Ended
from agentcache.loop import EngineLoop
from agentcache.model_shelf import ModelShelf
from agentcache.ports.model_source import ModelFolder
from agentcache.service import RunningTurn, Service
from tests.frail import FrailEngine
from tests.talks import Talk
from tests.world import World

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
