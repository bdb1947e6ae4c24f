"""The server in this process, over any engine, with the CPU time of all of it but the engine."""

import asyncio
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar

from attrs import define, evolve, field
from driver import default_model

from agentcache.adapters.clock import SystemClock
from agentcache.adapters.codecs import codec
from agentcache.adapters.http.app import create_app
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.server import HttpServer, listen, url_of
from agentcache.adapters.memory.engine import MemoryEngine, Pending
from agentcache.adapters.memory.hash_cache import HashCache
from agentcache.adapters.memory.segment_store import MemorySegmentStore
from agentcache.adapters.memory.session_store import MemorySessionStore
from agentcache.adapters.memory.tokenizer import END, VOCABULARY, MemoryTokenizer
from agentcache.adapters.mlx.cpu_threads import CREW
from agentcache.adapters.prometheus.metrics import PrometheusTelemetry
from agentcache.assembly import Assembly, Budgets
from agentcache.domain.notices import Limits
from agentcache.domain.plan import Sampled, StepPlan, StepResult
from agentcache.library.opening import container_of
from agentcache.loop import EngineLoop
from agentcache.ports.codec import Codec
from agentcache.ports.engine import Engine
from agentcache.roots import Codecs
from agentcache.service import Service
from agentcache.settings import Settings

T = TypeVar("T")
SAID = ord("a")


@define(eq=False)
class Idler(MemoryEngine):
    """An engine that computes nothing, in `step_seconds`, and says the same token all the time."""

    step_seconds: float = 0.0

    def collect(self) -> StepResult:
        time.sleep(self.step_seconds)
        return super().collect()

    def _run(self, step: int, sequence: int, cache: HashCache, ids: Sequence[int]):  # type: ignore[no-untyped-def]
        cache.length += len(ids)
        cache.token = SAID
        sampled = None if cache.sampling is None else Sampled(sequence, SAID)
        return Pending(cache, cache.epoch, sampled)


@define(eq=False)
class Clock:
    """Seconds of CPU that the thread which runs them spends in some blocks."""

    seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the block."""
        began = time.thread_time()
        try:
            yield
        finally:
            self.seconds += time.thread_time() - began


class Clocked:
    """An engine, what its thread spends in steps of it and on rows, and the tokens it sampled.

    The clock of steps is read in place, because what it takes to call one would be told as ours.
    """

    def __init__(self, engine: Engine, rows: Clock | None = None) -> None:
        self._engine, self._rows = engine, rows or Clock()
        self.steps, self.sampled = Clock(), 0

    def __getattr__(self, name: str) -> object:
        found = getattr(self._engine, name)
        return _clocked(found, self._rows) if name in _OF_ROWS else found

    def submit(self, plan: StepPlan) -> None:
        began = time.thread_time()
        try:
            self._engine.submit(plan)
        finally:
            self.steps.seconds += time.thread_time() - began

    def collect(self) -> StepResult:
        began = time.thread_time()
        try:
            result = self._engine.collect()
            self.sampled += len(result.sampled)
            return result
        finally:
            self.steps.seconds += time.thread_time() - began


class ClockedCodec:
    """A codec, and what is spent on encoding with it."""

    def __init__(self, codec: Codec, rows: Clock) -> None:
        self._codec, self.encode = codec, _clocked(codec.encode, rows)

    def __getattr__(self, name: str) -> object:
        return getattr(self._codec, name)


_OF_ROWS = {"start", "adopt", "grow", "trim", "drop", "rest", "export", "likeliest"}


def _clocked(call: Callable[..., T], clock: Clock) -> Callable[..., T]:
    def timed(*given: object, **named: object) -> T:
        with clock.running():
            return call(*given, **named)

    return timed


def idling(step_seconds: float, batch: int = 64) -> Assembly:
    """Everything but the disk and the model."""

    def engine() -> Idler:
        made = Idler.of(vocabulary=VOCABULARY, ends=frozenset({END}), context=100_000)
        made.step_seconds = step_seconds  # type: ignore[attr-defined]
        return made  # type: ignore[return-value]

    return Assembly(
        load_engine=engine,
        load_tokenizer=MemoryTokenizer,
        codecs=Codecs(codec("native")),
        segments=MemorySegmentStore(),
        sessions=MemorySessionStore(),
        clock=SystemClock(),
        telemetry=PrometheusTelemetry(),
        budgets=Budgets(memory=2**30, disk=2**30),
        limits=Limits(batch=batch, queue=1000),
    )


@contextmanager
def of_default_model() -> Iterator[Assembly]:
    """Everything, as it is served, in a home of its own."""
    with tempfile.TemporaryDirectory(prefix="agentcache-bench-") as scratch:
        settings = Settings(home=Path(scratch), model=str(default_model()))
        container = container_of(settings, {})
        with container.home():
            yield container.assembly()


PARTS = ("scheduler", "event loop", "preparing", "rows")


@define(eq=False)
class Serving:
    """A server that runs: where, and what it has cost."""

    host: str
    _engines: list[Clocked]
    _rows: Clock = field(factory=Clock)

    @property
    def model(self) -> str:
        """The name of its model."""
        return str(self._engines[0].card.name)  # type: ignore[attr-defined]

    def cpu(self) -> float:
        """Seconds of CPU of all threads that run Python, but for the steps of the engine."""
        return sum(self.cpu_by_part().values())

    def cpu_by_part(self) -> dict[str, float]:
        """The same by `PARTS`.

        The scheduler is the engine thread, the event loop has HTTP and SSE, and threads beside it
        prepare turns. Rows are what their readers and their writer take, and the engine thread
        where it makes room for rows, gives them out and encodes them. What the engine's own threads
        take is no part of it, native ones and those that share its products, nor what threads took
        that ended.
        """
        found = dict.fromkeys(PARTS, 0.0)
        for one in threading.enumerate():
            if one.ident and not one.name.startswith(CREW):
                clock = time.pthread_getcpuclockid(one.ident)
                found[_part(one.name)] += time.clock_gettime(clock)
        found["rows"] += self._rows.seconds
        found["scheduler"] -= self._rows.seconds + sum(one.steps.seconds for one in self._engines)
        return found

    async def cost(self, client: str, *words: object) -> dict[str, float]:
        """Seconds of CPU a token, by `PARTS`, until the program `client` is done.

        It runs in a process of its own.
        """
        told = (sys.executable, "-c", client, self.host, *map(str, words))
        process = await asyncio.create_subprocess_exec(*told)
        began, before = self.cpu_by_part(), self._sampled()  # to start a client is not ours
        if await process.wait():
            raise RuntimeError("the client failed")
        ended, tokens = self.cpu_by_part(), self._sampled() - before
        return {part: (ended[part] - began[part]) / tokens for part in PARTS}

    def _sampled(self) -> int:
        return sum(one.sampled for one in self._engines)


def _part(thread: str) -> str:
    if thread == threading.main_thread().name:
        return "event loop"
    kinds = {"agentcache-engine": "scheduler", "agentcache-": "rows"}
    return next((part for kind, part in kinds.items() if thread.startswith(kind)), "preparing")


@asynccontextmanager
async def serving(assembly: Assembly) -> AsyncIterator[Serving]:
    """A server over `assembly` on a free port."""
    engines: list[Clocked] = []
    rows = Clock()
    load: Callable[[], Engine] = assembly.load_engine

    def clocked() -> Engine:
        engines.append(Clocked(load(), rows))
        return engines[-1]  # type: ignore[return-value]

    codecs = Codecs(ClockedCodec(assembly.codecs.default, rows))  # type: ignore[arg-type]
    assembly = evolve(assembly, load_engine=clocked, codecs=codecs)
    loop = EngineLoop(assembly, assembly.clock, assembly.telemetry)
    loop.start()
    await asyncio.to_thread(loop.wait_open)
    edge = Edge(Service(loop, assembly.clock), 1_000_000, keep_alive=1.0)
    listener = listen("127.0.0.1", 0)
    server = HttpServer(create_app(edge, assembly.telemetry), edge, listener)  # type: ignore[arg-type]
    running = asyncio.create_task(server.run())
    try:
        yield Serving(url_of(listener).removeprefix("http://"), engines, rows)
    finally:
        server.stop()
        await running
        loop.stop(within=0)
        await asyncio.to_thread(loop.join)
