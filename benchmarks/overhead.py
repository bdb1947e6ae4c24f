"""CPU time that a token and stream costs beside the model: scheduler, speech, HTTP and SSE.

First with an engine that says the same token all the time and computes nothing; it takes a while
for a step, as a real one does, asleep. Then with the default model. What is measured is the CPU
time of the server's Python threads from a turn's request to its end, divided by its tokens, without
what the engine thread spends in steps of the engine, in which tokens are also chosen. Waking up,
waiting for the interpreter and whatever else happens now and then in these threads is a part of it.
Clients are another process.

It is told by part (see `Serving.cpu`). Rows are made room for, encoded, read, merged and written:
that is what the memory costs, not the server, the scheduler or SSE, so it is no part of the bar,
but of the sum that is told beside it. Of several rounds the cheapest counts: others on the machine
empty the caches and make the same work dearer, never cheaper.
"""

import argparse
import asyncio
import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import structlog
import uvloop
from recording import bar, parsed, write_results
from serving import idling, of_default_model, serving

from agentcache.assembly import Assembly
from agentcache.domain.conversation import Conversation, Message
from agentcache.domain.events import Ended, Event
from agentcache.domain.request import Identity
from agentcache.preparing import Ask, prepared

CLIENT = """
import http.client, json, sys, threading
host, dialect, model, streams, tokens = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
def talk(number):
    said = [{"role": "user", "content": f"Write a long story about dragon number {number}."}]
    path, asked = {
        "chat": ("chat/completions", {"messages": said, "max_tokens": tokens}),
        "responses": ("responses", {"input": said, "max_output_tokens": tokens}),
        "messages": ("messages", {"messages": said, "max_tokens": tokens}),
    }[dialect]
    connection = http.client.HTTPConnection(host, timeout=600)
    asked |= {"model": model, "stream": True}
    connection.request("POST", "/v1/" + path, json.dumps(asked))
    answer = connection.getresponse()
    assert answer.status == 200, answer.status
    while answer.read1(65536):
        pass
threads = [threading.Thread(target=talk, args=(number,)) for number in range(streams)]
[one.start() for one in threads]
[one.join() for one in threads]
"""
DIALECTS = ("chat", "responses", "messages")


def conducted(streams: int, tokens: int) -> float:
    """Seconds of CPU a token: planner, conductor, speech and metrics, without a pause."""
    calls: list[Callable[[], None]] = []
    conductor = idling(0.0)(calls.append)
    over: list[Event] = []

    def emit(event: object) -> None:
        if isinstance(event, Ended):
            over.append(event)

    for number in range(streams):
        said = Conversation((Message("user", f"I am number {number}"),))
        ask = Ask(Identity(), said, max_tokens=tokens)
        conductor.enqueue(prepared(ask, conductor, math.inf, 0.0), emit)
    began = time.process_time()
    while len(over) < streams:
        conductor.round()
        while calls:
            calls.pop(0)()
    seconds = time.process_time() - began
    conductor.close()
    return seconds / (streams * tokens)


Costs = dict[str, float]  # microseconds of CPU a token and stream, by part


async def served(made: Assembly, streams: int, tokens: int, rounds: int) -> dict[str, list[Costs]]:
    """What every round costs, by dialect."""
    found: dict[str, list[Costs]] = {dialect: [] for dialect in DIALECTS}
    async with serving(made) as server:
        await server.cost(CLIENT, "chat", server.model, streams, 4)  # the first time warms up
        for _ in range(rounds):
            for dialect in DIALECTS:
                costs = await server.cost(CLIENT, dialect, server.model, streams, tokens)
                found[dialect].append({part: round(1e6 * cost, 1) for part, cost in costs.items()})
    return found


def cheapest(rounds: list[Costs]) -> Costs:
    """The round that costs least, with the sum of its parts, and that without `rows`."""
    best = min(rounds, key=_without_rows)
    without, every = _without_rows(best), round(sum(best.values()), 1)
    return {"server, scheduler and SSE": without, "with rows": every} | best


def _without_rows(costs: Costs) -> float:
    return round(sum(costs.values()) - costs["rows"], 1)


def _run(
    made: AbstractContextManager[Assembly], options: argparse.Namespace, streams: int, tokens: int
) -> dict[str, list[Costs]]:
    with made as assembly, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(served(assembly, streams, tokens, options.rounds))


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step", type=float, default=0.02, help="seconds that a step takes")
    parser.add_argument("--alone", type=int, default=3000, help="tokens without the edge")
    parser.add_argument("--model-tokens", type=int, default=150, help="0: not the default model")
    small = {"streams": [2], "tokens": 30, "rounds": 1, "step": 0.001, "alone": 100}
    options = parsed(parser, **small, model_tokens=0)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    found: dict[str, Costs] = {}
    alone, every = {}, {}
    for streams in options.streams:
        rounds = _run(nullcontext(idling(options.step)), options, streams, options.tokens)
        alone[str(streams)] = round(conducted(streams, options.alone) * 1e6, 1)
        every[f"an idle engine, streams: {streams}"] = rounds
        found |= {f"{streams}, {name}": cheapest(costs) for name, costs in rounds.items()}
    if options.model_tokens:
        rounds = _run(of_default_model(), options, 1, options.model_tokens)
        every["the default model, streams: 1"] = rounds
        found |= {f"1, default model, {name}": cheapest(costs) for name, costs in rounds.items()}
    most = max(costs["server, scheduler and SSE"] for costs in found.values())
    results = {
        "microseconds of CPU a token and stream": found,
        "planner, conductor and speech, without a pause": alone,
        "every round": every,
        "bars": [
            bar("CPU of server, scheduler and SSE, ms a token and stream", most / 1000, most=0.5)
        ],
    }
    write_results("overhead", results, options.quick)


if __name__ == "__main__":
    main()
