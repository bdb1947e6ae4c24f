"""A server that works for long: it takes no more memory, files and threads than at first."""

import asyncio
import random
import time
from pathlib import Path
from string import ascii_lowercase

from tests.servers import Server, served
from tests.stress.clients import Client, Crowd, crowd
from tests.stress.conftest import Report
from tests.stress.scale import SCALE
from tests.stress.tally import LEFT, OK, REFUSED, Tally, percentile
from tests.stress.watch import LATE_WORKERS, Sample, Watch, rests, watching

CLIENTS = 12
AGENTS = 60  # of more rows than memory and disk have room for: all tiers are full, and evict
MOST_TURNS = 8  # after which an agent begins a new conversation
GROWTH = 1.05  # of resident memory, at rest, after the warm-up
PARTS = 6
WORD_CACHE = 10_000  # DEFAULT_CACHE_CAPACITY of the tokenizers library
CROWDED = ("--memory-budget=3MB", "--disk-cap=6MB", "--max-batch=6", "--max-queue=8")


async def _fill_word_cache(of: Crowd) -> None:
    """The tokenizer remembers the words it saw, WORD_CACHE at most: have that done with."""
    chance = random.Random(1)
    for _ in range(0, 2 * WORD_CACHE, 1_000):
        words = ("".join(chance.choices(ascii_lowercase, k=8)) for _ in range(1_000))
        message = {"role": "user", "content": " ".join(words)}
        body = {"model": of.model, "messages": [message]}
        refused = await of.http.post("/v1/chat/completions", json=body)
        assert refused.json()["error"]["code"] == "context_length_exceeded"


async def _go_on(clients: list[Client], seconds: float, chance: random.Random) -> None:
    """Turns of every kind by agents drawn again and again, each by one client at a time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        client = clients.pop(chance.randrange(len(clients)))
        if len(client.messages) > 2 * MOST_TURNS:
            client.start_over()
        question = "What is new? " * chance.choice((1, 1, 1, 10))
        length, stream = chance.choice((2, 4, 8, 30)), chance.random() < 0.7
        if chance.random() < 0.05:
            await client.ask(question, length, stream=stream, leave_after=0.1 * chance.random())
        else:
            await client.insist(question, length, stream=stream)
        clients.append(client)
        await asyncio.sleep(chance.expovariate(20.0))


async def _load(
    server: Server, of: Crowd, clients: list[Client], seconds: float, watch: Watch
) -> Sample:
    """What the server takes, at rest, after so many seconds of load."""
    tasks = (
        asyncio.create_task(_go_on(clients, seconds, random.Random(number)))
        for number in range(CLIENTS)
    )
    await asyncio.gather(*tasks)
    await rests(server)
    await of.hang_up()
    floor = watch.samples[0].files  # of which one is the connection that asks for metrics
    await watch.until(lambda now: now.files <= floor)
    return watch.look()


def test_a_server_that_works_for_long_takes_no_more_than_at_first(
    tmp_path: Path, model: Path, report: Report
) -> None:
    warm_up = min(300.0, SCALE.sustained / 2)

    async def load() -> None:
        with served(tmp_path / "home", model, *CROWDED) as server:
            async with crowd(server.url) as clients, watching(server, every=0.5) as watch:
                agents = clients.clients("agent", AGENTS, words=30)
                await _fill_word_cache(clients)
                before = await _load(server, clients, agents, warm_up, watch)
                clients.tally.check(OK, REFUSED, LEFT)
                tally = clients.count_anew()
                after = await _load(server, clients, agents, SCALE.sustained - warm_up, watch)
                _tell(report, tally, before, after, watch)
                tally.check(OK, REFUSED, LEFT)
                assert after.resident < GROWTH * before.resident
                assert after.files <= before.files
                assert after.threads <= before.threads + LATE_WORKERS
                assert server.metric("evicted_segments_total", tier="cold") > 0
            assert server.stop() == 0
            _check_quiet(server)

    asyncio.run(load())


def _tell(report: Report, tally: Tally, before: Sample, after: Sample, watch: Watch) -> None:
    report(tally.summary())
    for what, one in (("warm-up", before), ("load", after), ("the most", watch.most)):
        report(f"{what}: {one.resident / 2**20:.1f} MB, {one.files} files, {one.threads} threads")
    size = len(tally.answers) // PARTS
    parts = [tally.answers[size * part : size * (part + 1)] for part in range(PARTS)]
    p95 = [percentile((one.seconds for one in part), 95) for part in parts]
    told = " ".join(f"{1000 * one:.0f}" for one in p95)
    drift = p95[-1] / p95[0] - 1 if p95[0] else 0
    report(f"p95 of a turn in parts of the time: {told} ms; drift {drift:+.0%}, the goal is 20 %")


def _check_quiet(server: Server) -> None:
    """Fail when the log tells of errors."""
    errors = [line for line in server.log.read_text().splitlines() if "[error" in line]
    assert not errors, errors
