"""What open streams that say nothing cost the one that runs: CPU and seconds of its tokens.

A stream runs on a real server, over an engine that says the same token all the time and computes
nothing; it takes a while for a step, asleep. Beside it there is nobody; or many streams that have
begun and say nothing but that they are alive; or as many turns of its agent, which wait for it to
end. Clients are a process of their own. By turns, in several rounds; medians, and the ratios of
each round. The silent streams have turns that are no engine's: real connections, real pings.
"""

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
import uvloop
from attrs import define, evolve, field
from recording import bar, median, parsed, write_results
from serving import Clocked, Serving, idling

from agentcache.adapters.http.app import create_app
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.server import HttpServer, listen, url_of
from agentcache.domain.answer import Reading
from agentcache.domain.errors import AgentCacheError
from agentcache.domain.events import Admitted
from agentcache.domain.planner import CLIENT_LEFT
from agentcache.domain.request import Miss, Tier
from agentcache.inbox import Inbox
from agentcache.loop import EngineLoop, Ticket
from agentcache.preparing import Ask
from agentcache.service import RunningTurn, Service

CLIENT = """
import http.client, json, sys
host, kind, idle, tokens = *sys.argv[1:3], int(sys.argv[3]), int(sys.argv[4])
def stream(agent, tokens):
    connection = http.client.HTTPConnection(host, timeout=600)
    said = [{"role": "user", "content": "Write a long story about a dragon."}]
    asked = {"model": "memory", "stream": True, "max_tokens": tokens, "messages": said}
    headers = {"x-agent-id": agent}
    connection.request("POST", "/v1/chat/completions", json.dumps(asked), headers)
    return connection
def begun(connection):
    answer = connection.getresponse()
    assert answer.status == 200, answer.status
    answer.read1(10)
    return answer
silent = [stream(f"silent {n}", 1) for n in range(idle)] if kind == "silent" else []
answers = [begun(one) for one in silent]
running = begun(stream("ada", tokens))
waiting = [stream("ada", 1) for _ in range(idle)] if kind == "waiting" else []
print("open", flush=True)
while running.read1(65536):
    pass
print("done", flush=True)
"""
KINDS = ("alone", "silent", "waiting")


@define(eq=False)
class SilentTurn(RunningTurn):
    """Has its place, and says nothing until its client leaves."""

    async def cancel(self, why: AgentCacheError = CLIENT_LEFT) -> None:
        """See `RunningTurn.cancel`; no engine knows of it."""
        self._inbox.put(why)


@define(eq=False)
class Beside(Service):
    """A service whose agents named "silent ..." get silent turns. It knows how many wait."""

    silent: int = field(default=0, init=False)

    async def begin(self, ask: Ask) -> RunningTurn:
        """See `Service.begin`."""
        if not (ask.identity.name or "").startswith("silent"):
            return await super().begin(ask)
        self.silent += 1
        name, place = f"silent{self.silent}", Admitted(1, 0, Tier.NONE, Miss.NONE)
        return SilentTurn(name, time.time(), place, Reading(), Ticket(0, 0), Inbox(), self._loop)

    def waiting(self) -> int:
        """How many turns there are beside the one that runs."""
        return len(self._loop.conductor.planner.turns) - 1


@define(eq=False)
class Bench:
    """A server, and what it has said."""

    server: Serving
    service: Beside
    engines: list[Clocked]

    async def measured(self, kind: str, idle: int, tokens: int) -> tuple[float, float]:
        """Microseconds of CPU, and milliseconds, of a token of the stream that runs."""
        words = (self.server.host, kind, str(idle), str(tokens))
        client = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CLIENT, *words), stdout=asyncio.subprocess.PIPE
        )
        assert client.stdout is not None
        await client.stdout.readline()  # all are open, and none is on its way any more
        await _until(lambda: kind != "waiting" or self.service.waiting() == idle)
        began, cpu, said = time.perf_counter(), self.server.cpu(), self._said()
        await client.stdout.readline()
        seconds, cost = time.perf_counter() - began, self.server.cpu() - cpu
        tokens = self._said() - said
        if await client.wait():
            raise RuntimeError("the client failed")
        await _until(lambda: self.service.waiting() < 0)  # who left has given up its place
        return 1e6 * cost / tokens, 1e3 * seconds / tokens

    def _said(self) -> int:
        return sum(one.sampled for one in self.engines)


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the planner tells nobody of it
        await asyncio.sleep(0.01)


@asynccontextmanager
async def serving_beside(step: float, pings: float) -> AsyncIterator[Bench]:
    """A server whose steps take `step` seconds, and that says every `pings` that it is alive."""
    engines: list[Clocked] = []
    made = idling(step)

    def clocked() -> Clocked:
        engines.append(Clocked(made.load_engine()))
        return engines[-1]

    assembly = evolve(made, load_engine=clocked)
    loop = EngineLoop(assembly, made.clock, made.telemetry)
    loop.start()
    await asyncio.to_thread(loop.wait_open)
    service = Beside(loop, made.clock)
    edge = Edge(service, 1_000_000, keep_alive=pings)
    listener = listen("127.0.0.1", 0)
    server = HttpServer(create_app(edge), edge, listener)
    running = asyncio.create_task(server.run())
    try:
        yield Bench(Serving(url_of(listener).removeprefix("http://"), engines), service, engines)
    finally:
        server.stop()
        await running
        loop.stop(within=0)
        await asyncio.to_thread(loop.join)


async def all_rounds(options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """What each kind of company costs, by round; the order changes from round to round."""
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    async with serving_beside(options.step, options.pings) as bench:
        await bench.measured("alone", 0, 20)  # the first time warms up
        for number in range(options.rounds):
            for kind in KINDS[number % 3 :] + KINDS[: number % 3]:
                idle = 0 if kind == "alone" else options.idle
                found[kind].append(await bench.measured(kind, idle, options.tokens))
    return found


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--idle", type=int, default=200, help="streams beside the one that runs")
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step", type=float, default=0.02, help="seconds that a step takes")
    parser.add_argument("--pings", type=float, default=15.0, help="seconds between two of a stream")
    options = parsed(parser, idle=5, tokens=20, rounds=1, step=0.001, pings=0.05)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rounds = runner.run(all_rounds(options))
    table, slower = {}, {}
    for kind in KINDS:
        pairs = list(zip(rounds[kind], rounds["alone"], strict=True))
        slower[kind] = median(one[1] / alone[1] for one, alone in pairs)
        table["alone" if kind == "alone" else f"beside {options.idle} {kind} ones"] = {
            "µs of CPU a token": median(one[0] for one, _ in pairs),
            "÷ alone, CPU": median(one[0] / alone[0] for one, alone in pairs),
            "ms a token": median(one[1] for one, _ in pairs),
            "÷ alone, ms": slower[kind],
        }
    most = max(slower["silent"], slower["waiting"])
    told = f"a stream beside {options.idle} that say nothing ÷ alone, seconds a token"
    results = {
        "a stream that runs": table,
        "every round": rounds,
        "bars": [bar(told, most, most=1.1)],
    }
    write_results("idle_streams", results, options.quick)


if __name__ == "__main__":
    main()
