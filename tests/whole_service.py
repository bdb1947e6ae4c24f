"""The real service over the in-memory adapters, and telemetry that can be waited for."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from attrs import define, field, frozen

from agentcache.adapters.clock import SystemClock
from agentcache.adapters.codecs import codec
from agentcache.adapters.disk.portable import PortableTars
from agentcache.adapters.grammars.llguidance import LLGrammars
from agentcache.adapters.memory.engine import MemoryEngine
from agentcache.adapters.memory.segment_store import MemorySegmentStore
from agentcache.adapters.memory.session_store import MemorySessionStore
from agentcache.adapters.memory.telemetry import RecordingTelemetry
from agentcache.adapters.memory.tokenizer import END, VOCABULARY, MemoryTokenizer
from agentcache.assembly import Assembly, Budgets
from agentcache.domain.notices import Limits
from agentcache.domain.request import Finish
from agentcache.loop import EngineLoop
from agentcache.plugins import codecs
from agentcache.porting import Porter
from agentcache.ports.grammar import Lexicon
from agentcache.roots import Codecs
from agentcache.service import Service


@define(eq=False)
class WatchedTelemetry(RecordingTelemetry):
    """Lets an event loop wait until what was told fulfils a condition."""

    _changed: Callable[[], object] = field(default=lambda: None, init=False)

    def turn_ended(self, finish: Finish, completion: int, seconds_to_first: float | None) -> None:
        super().turn_ended(finish, completion, seconds_to_first)
        self._changed()

    def gauges(self, values: dict[str, float]) -> None:
        super().gauges(values)
        self._changed()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds; it is looked at whenever something is told."""
        here, changed = asyncio.get_running_loop(), asyncio.Event()
        self._changed = lambda: here.call_soon_threadsafe(changed.set)
        while not condition():
            await changed.wait()
            changed.clear()
        self._changed = lambda: None


@frozen
class Whole:
    """A service and what it told."""

    service: Service
    telemetry: WatchedTelemetry


@contextmanager
def whole_service(
    limits: Limits = Limits(),  # noqa: B008 - it is frozen
    context: int = 8192,
    end_rate: float = 0.05,
    lexicon: Callable[[], Lexicon] | None = None,
) -> Iterator[Whole]:
    """Run it; at the end it has stopped, and every invariant of it has held while it was idle."""
    telemetry = WatchedTelemetry()
    clock = SystemClock()
    assembly = Assembly(
        load_engine=lambda: MemoryEngine.of(
            vocabulary=VOCABULARY, ends=frozenset({END}), context=context, end_rate=end_rate
        ),
        load_tokenizer=MemoryTokenizer,
        codecs=Codecs(codec("native"), codecs()),
        segments=MemorySegmentStore(),
        sessions=MemorySessionStore(),
        clock=clock,
        telemetry=telemetry,
        budgets=Budgets(memory=2**30, disk=2**30),
        limits=limits,
        open_grammars=lambda tokenizer, card: LLGrammars(lexicon or tokenizer.lexicon, card.ends),
    )
    loop = EngineLoop(assembly, clock, telemetry, debug=True)
    loop.start()
    loop.wait_open()
    try:
        yield Whole(Service(loop, clock, porter=Porter(loop, PortableTars())), telemetry)
    finally:
        loop.stop(within=0)
        loop.join()
    if loop.problem is not None:
        raise loop.problem
