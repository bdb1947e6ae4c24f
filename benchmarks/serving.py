"""The server in this process, over any engine, with the CPU time of all of it but the engine."""

import asyncio
import math
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from attrs import define, evolve
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
from agentcache.ports.engine import Engine
from agentcache.roots import Codecs
from agentcache.service import Service
from agentcache.settings import Settings

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


class Clocked:
    """An engine, the seconds of CPU that its thread spends in steps of it, and its tokens."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.seconds, self.sampled = engine, 0.0, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def submit(self, plan: StepPlan) -> None:
        began = time.thread_time()
        try:
            self._engine.submit(plan)
        finally:
            self.seconds += time.thread_time() - began

    def collect(self) -> StepResult:
        began = time.thread_time()
        try:
            result = self._engine.collect()
            self.sampled += len(result.sampled)
            return result
        finally:
            self.seconds += time.thread_time() - began


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


@define(eq=False)
class Serving:
    """A server that runs: where, and what it has cost."""

    host: str
    _engines: list[Clocked]

    @property
    def model(self) -> str:
        """The name of its model."""
        return str(self._engines[0].card.name)  # type: ignore[attr-defined]

    def cpu(self) -> float:
        """Seconds of CPU of all threads that run Python, but for the steps of the engine.

        What the engine's own threads take is no part of it, native ones and those that share its
        products, nor what threads took that ended.
        """
        clocks = (
            time.pthread_getcpuclockid(one.ident)
            for one in threading.enumerate()
            if one.ident and not one.name.startswith(CREW)
        )
        return math.fsum(map(time.clock_gettime, clocks)) - sum(
            one.seconds for one in self._engines
        )

    async def cost(self, client: str, *words: object) -> float:
        """Seconds of CPU a token until the program `client`, in a process of its own, is done."""
        told = (sys.executable, "-c", client, self.host, *map(str, words))
        process = await asyncio.create_subprocess_exec(*told)
        began, before = self.cpu(), self._sampled()  # what it takes to start a client is not ours
        if await process.wait():
            raise RuntimeError("the client failed")
        return (self.cpu() - began) / (self._sampled() - before)

    def _sampled(self) -> int:
        return sum(one.sampled for one in self._engines)


@asynccontextmanager
async def serving(assembly: Assembly) -> AsyncIterator[Serving]:
    """A server over `assembly` on a free port."""
    engines: list[Clocked] = []
    load: Callable[[], Engine] = assembly.load_engine

    def clocked() -> Engine:
        engines.append(Clocked(load()))
        return engines[-1]  # type: ignore[return-value]

    loop = EngineLoop(evolve(assembly, load_engine=clocked), assembly.clock, assembly.telemetry)
    loop.start()
    await asyncio.to_thread(loop.wait_open)
    edge = Edge(Service(loop, assembly.clock), 1_000_000, keep_alive=1.0)
    listener = listen("127.0.0.1", 0)
    server = HttpServer(create_app(edge, assembly.telemetry), edge, listener)  # type: ignore[arg-type]
    running = asyncio.create_task(server.run())
    try:
        yield Serving(url_of(listener).removeprefix("http://"), engines)
    finally:
        server.stop()
        await running
        loop.stop(within=0)
        await asyncio.to_thread(loop.join)
