"""CPU time that a token and stream costs beside the model: scheduler, speech, HTTP and SSE.

The engine here says the same token all the time and computes nothing; it takes a while for a step,
as a real one does, asleep. What is measured is the CPU time of this process; clients are another.
"""

import argparse
import asyncio
import logging
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence

import structlog
from attrs import define
from recording import bar, parsed, write_results

from agentcache.adapters.clock import SystemClock
from agentcache.adapters.codecs import codec
from agentcache.adapters.http.app import create_app
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.server import HttpServer, listen, url_of
from agentcache.adapters.memory.engine import MemoryEngine
from agentcache.adapters.memory.hash_cache import HashCache
from agentcache.adapters.memory.segment_store import MemorySegmentStore
from agentcache.adapters.memory.session_store import MemorySessionStore
from agentcache.adapters.memory.tokenizer import END, VOCABULARY, MemoryTokenizer
from agentcache.adapters.prometheus.metrics import PrometheusTelemetry
from agentcache.assembly import Assembly, Budgets
from agentcache.domain.conversation import Conversation, Message
from agentcache.domain.events import Ended, Event
from agentcache.domain.notices import Limits
from agentcache.domain.plan import Sampled, StepResult
from agentcache.domain.request import Identity
from agentcache.loop import EngineLoop
from agentcache.preparing import Ask, prepared
from agentcache.roots import Codecs
from agentcache.service import Service

SAID = ord("a")
CLIENT = """
import http.client, json, sys, threading
host, streams, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def talk(number):
    connection = http.client.HTTPConnection(host, timeout=600)
    asked = {"model": "memory", "stream": True, "max_tokens": tokens,
             "messages": [{"role": "user", "content": f"I am number {number}"}]}
    connection.request("POST", "/v1/chat/completions", json.dumps(asked))
    answer = connection.getresponse()
    assert answer.status == 200, answer.status
    while answer.read1(65536):
        pass
threads = [threading.Thread(target=talk, args=(number,)) for number in range(streams)]
[one.start() for one in threads]
[one.join() for one in threads]
"""


@define(eq=False)
class Idler(MemoryEngine):
    """An engine that computes nothing, in `step_seconds`."""

    step_seconds: float = 0.0

    def collect(self) -> StepResult:
        time.sleep(self.step_seconds)
        return super().collect()

    def _run(self, step: int, sequence: int, cache: HashCache, ids: Sequence[int]):  # type: ignore[no-untyped-def]
        cache.length += len(ids)
        cache.token = SAID
        sampled = None if cache.sampling is None else Sampled(sequence, SAID)
        return _Done(cache, cache.epoch, sampled)


@define(eq=False)
class _Done:
    cache: HashCache
    epoch: int
    outcome: Sampled | None


def assembly(step_seconds: float) -> Assembly:
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
        limits=Limits(batch=64),
    )


def conducted(streams: int, tokens: int) -> float:
    """Seconds of CPU a token: planner, conductor, speech and metrics, on one thread."""
    calls: list[Callable[[], None]] = []
    conductor = assembly(0.0)(calls.append)
    over: list[Event] = []

    def emit(event: object) -> None:
        if isinstance(event, Ended):
            over.append(event)

    for number in range(streams):
        said = Conversation((Message("user", f"I am number {number}"),))
        ask = Ask(Identity(), said, max_tokens=tokens)
        conductor.enqueue(prepared(ask, conductor, math.inf), emit)
    began = time.process_time()
    while len(over) < streams:
        conductor.round()
        while calls:
            calls.pop(0)()
    seconds = time.process_time() - began
    conductor.close()
    return seconds / (streams * tokens)


async def served(streams: int, tokens: int, step_seconds: float) -> tuple[float, float]:
    """Seconds of CPU a token of the whole server, in it and in the kernel; not its clients'."""
    made = assembly(step_seconds)
    loop = EngineLoop(made, made.clock, made.telemetry)
    loop.start()
    loop.wait_open()
    edge = Edge(Service(loop, made.clock), 1_000_000)
    listener = listen("127.0.0.1", 0)
    server = HttpServer(create_app(edge, made.telemetry), edge, listener)  # type: ignore[arg-type]
    serving = asyncio.create_task(server.run())
    host = url_of(listener).removeprefix("http://")
    for count in (4, tokens):  # the first time warms up
        began = resource.getrusage(resource.RUSAGE_SELF)
        command = (sys.executable, "-c", CLIENT, host, str(streams), str(count))
        client = await asyncio.create_subprocess_exec(*command)
        assert await client.wait() == 0
    ended = resource.getrusage(resource.RUSAGE_SELF)
    server.stop()
    await serving
    loop.stop(within=0)
    loop.join()
    own, kernel = ended.ru_utime - began.ru_utime, ended.ru_stime - began.ru_stime
    return own / (streams * tokens), kernel / (streams * tokens)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--step", type=float, default=0.02, help="seconds that a step takes")
    parser.add_argument("--alone", type=int, default=3000, help="tokens without the edge")
    options = parsed(parser, streams=[2], tokens=30, step=0.001, alone=100)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    found = {}
    for streams in options.streams:
        own, kernel = asyncio.run(served(streams, options.tokens, options.step))
        found[f"{streams} streams"] = {
            "planner, conductor, speech": round(conducted(streams, options.alone) * 1e6, 1),
            "whole server": round((own + kernel) * 1e6, 1),
            "of which in the kernel": round(kernel * 1e6, 1),
        }
    most = max(one["whole server"] for one in found.values())
    results = {
        "microseconds of CPU a token and stream": found,
        "bars": [
            bar("CPU of server, scheduler and SSE, ms a token and stream", most / 1000, most=0.5)
        ],
    }
    write_results("overhead", results, options.quick)


if __name__ == "__main__":
    main()
