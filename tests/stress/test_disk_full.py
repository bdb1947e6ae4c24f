"""A disk that gets full under load: turns go on, the server says so, and catches up afterwards."""

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psutil

from tests.servers import Server, served
from tests.stress.clients import Client, crowd, meanwhile, together
from tests.stress.conftest import Report
from tests.stress.scale import SCALE
from tests.stress.tally import OK
from tests.stress.watch import rests, until

WORDS = 40  # of a system prompt: its rows take more than NO_ROOM
NO_ROOM = 16_384  # bytes
ROOM = ("--memory-budget=8MB", "--max-batch=6", "--max-queue=100", "--log-level=error")


@contextmanager
def full_disk(server: Server) -> Iterator[None]:
    """No file of the server can grow beyond NO_ROOM: as on a full disk, all larger writes fail.

    Of a running process the limit can be set from outside, by anybody who may stop it.
    """
    process = psutil.Process(server.process.pid)
    before = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (NO_ROOM, before[1]))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_FSIZE, before)


def _says_that_it_cannot_write(server: Server) -> bool:
    health = server.client.get("/health/ready")
    assert health.status_code == 200, "it still takes turns"
    return "read-only" in health.json()["detail"].get("store", "")


def test_turns_go_on_while_the_disk_is_full_and_are_written_when_it_is_not_any_more(
    tmp_path: Path, model: Path, report: Report
) -> None:
    numbers = count()

    async def load() -> None:
        with served(tmp_path / "home", model, *ROOM) as server:
            async with crowd(server.url) as clients:
                agents = clients.clients("agent", SCALE.disk_agents, words=WORDS)

                async def anybody() -> None:
                    newcomer = clients.client(f"newcomer-{next(numbers)}", words=WORDS)
                    await newcomer.insist("Hello?", 4, stream=random.random() < 0.5)

                for number in range(SCALE.disk_rounds):
                    async with meanwhile(anybody, clients=2):
                        await together(one.insist(f"Before {number}?") for one in agents)
                        with full_disk(server):
                            for turn in range(3):
                                await together(one.insist(f"In {turn}?") for one in agents)
                            await until(lambda: _says_that_it_cannot_write(server))
                        await together(one.insist(f"After {number}?") for one in agents)
                    await until(lambda: not _says_that_it_cannot_write(server))
                await rests(server)
                report(clients.tally.summary())
                clients.tally.check(OK)
                assert clients.tally.hit_rate() > 0.9
                last = {one.name: one.known for one in agents}
            server.kill()
        await _nothing_is_lost(tmp_path / "home", model, agents, last)

    asyncio.run(load())


async def _nothing_is_lost(
    home: Path, model: Path, agents: list[Client], last: dict[str | None, int]
) -> None:
    with served(home, model, *ROOM) as server:
        async with crowd(server.url) as clients:
            for one in agents:
                one.crowd = clients
                outcome = await one.insist("What did I say?", 4)
                assert outcome.cached >= last[one.name] - 8, outcome
        assert server.stop() == 0
