"""How long the event loop stalls while the server works: a task in it asks to be woken often.

The server as it is, with that task beside it; clients in threads of this process. Long agents and
short ones come and go, and one client sends bodies of 256 KB beside its turns. A stall is how much
later than asked the task was woken; other processes' CPU time counts too. What the loop's own
thread worked in that time does not: the rest of a long stall was waiting, for the processor or for
the interpreter's lock. While the model is loaded nobody is served: that is told apart.
"""

import argparse
import json
import sys
import tempfile
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from driver import VOCABULARY, Agent, Server, agentcache, chat, default_model, running, tiny_model
from recording import bar, parsed, write_results

PERIOD = 0.005  # seconds
WATCHED = """
import asyncio, json, sys, time
from agentcache.adapters.http.server import HttpServer
from agentcache.cli import main

run, path, period = HttpServer.run, sys.argv.pop(1), float(sys.argv.pop(1))

async def watch(late):
    while True:
        asked, worked = time.perf_counter() + period, time.thread_time()
        await asyncio.sleep(period)
        late.append((time.time(), time.perf_counter() - asked, time.thread_time() - worked))

async def watched(self, *rest):
    late = []
    task = asyncio.create_task(watch(late))
    try:
        await run(self, *rest)
    finally:
        task.cancel()
        with open(path, "w") as file:
            json.dump(late, file)

HttpServer.run = watched
main()
"""


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--words", type=int, default=1000, help="of the long agents' notes")
    parser.add_argument("--body", type=int, default=256_000, help="bytes of the largest bodies")
    options = parsed(parser, seconds=2, clients=2, words=20, body=10_000)
    with tempfile.TemporaryDirectory(prefix="agentcache-bench-") as scratch:
        path = Path(scratch)
        folder = tiny_model(path) if options.quick else default_model()
        told = path / "late.json"
        words = [sys.executable, "-c", WATCHED, str(told), str(PERIOD)]
        command = [*words, *agentcache(path / "home", folder)[1:]]
        with running(command, path / "log") as server:
            ready = time.time()
            turns = _load(server, options)
        found = [tuple(one) for one in json.loads(told.read_text())]
    served = [one for one in found if one[0] > ready]
    late, worked = sorted(one[1] for one in served), sorted(one[2] for one in served)
    results = {
        "turns": turns,
        "times asked": len(late),
        "while the model was loaded, longest, ms": _at(
            sorted(one[1] for one in found if one[0] <= ready), 1.0
        ),
        "stall, ms": {name: _at(late, share) for name, share in SHARES.items()},
        "work of the loop's own thread meanwhile, ms": {
            name: _at(worked, share) for name, share in SHARES.items()
        },
        "bars": [bar("event loop stall, p99.9 in ms", _at(late, 0.999), most=50)],
    }
    write_results("stalls", results, options.quick)


SHARES = {"median": 0.5, "p99": 0.99, "p99.9": 0.999, "longest": 1.0}


def _at(values: list[float], share: float) -> float:
    """Milliseconds at this share of sorted `values`."""
    return round(1000 * values[min(int(share * len(values)), len(values) - 1)], 2)


def _load(server: Server, options: argparse.Namespace) -> int:
    """All clients until the time is over; how many turns they had."""
    until = time.monotonic() + options.seconds
    with ThreadPoolExecutor(options.clients) as clients:
        numbers = range(options.clients)
        return sum(clients.map(lambda number: _talk(server, number, until, options), numbers))


def _talk(server: Server, number: int, until: float, options: argparse.Namespace) -> int:
    """One client: a new agent every five turns; the first client sends the large bodies."""
    turns = 0
    while time.monotonic() < until:
        if turns % 5 == 0:
            words = options.words if number % 2 else 50
            agent = Agent.with_notes(f"client{number}-{turns}", 1000 * number + turns, words)
        if number == 0:
            _send_large(server, f"large{turns}", options.body)
        agent.ask(server, f"Question {turns}: name some words from your notes.", 24)
        turns += 1
    return turns


def _send_large(server: Server, name: str, nbytes: int) -> None:
    """A body of so many bytes of text: it is parsed, rendered and counted, and then refused where
    the model's context is too short for it.
    """
    said = (" ".join(VOCABULARY.split()) + " ") * (nbytes // 200)
    messages = [{"role": "user", "content": said[: nbytes - 300]}]
    try:
        chat(server, messages, name, 1)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 400:
                raise


if __name__ == "__main__":
    main()
