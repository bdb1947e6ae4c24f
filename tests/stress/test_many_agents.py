"""Thousands of small agents, and a huge one among them."""

import asyncio
import random
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.servers import Server, served
from tests.stress.clients import Client, crowd, meanwhile, together
from tests.stress.conftest import Report
from tests.stress.scale import SCALE
from tests.stress.tally import OK
from tests.stress.watch import Watch

ROOM = ("--memory-budget=16MB", "--max-batch=8", "--max-queue=100")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Server]:
    """A server in whose memory the huge agent has room, and of the tiny ones some."""
    with served(tmp_path_factory.mktemp("many") / "home", model, *ROOM) as server:
        yield server


def test_thousands_of_tiny_agents_and_a_huge_one_do_not_push_each_other_out(
    server: Server, report: Report
) -> None:
    async def load() -> None:
        async with crowd(server.url) as clients:
            before = server.metric("sessions")
            huge = clients.client("huge", words=SCALE.huge // 7)
            first = await huge.insist("Who are you?")
            assert first.prompt > 0.8 * SCALE.huge
            said, known = list(huge.messages), huge.known
            tiny = clients.clients("tiny", SCALE.tiny, words=1)
            waiting, watch = iter(tiny), Watch.of(server)

            async def next_one() -> None:
                if (client := next(waiting, None)) is not None:
                    await client.insist("?", 2)
                else:
                    await asyncio.sleep(0.01)

            numbers = count()
            async with meanwhile(next_one, clients=16):
                while not all(one.known for one in tiny):
                    huge.messages, huge.known = list(said), known  # lest it gets too long
                    back = await huge.insist(f"Still there, {next(numbers)}?", 4)
                    assert back.cached > 0.9 * back.expected
                    await asyncio.sleep(0.2)
            clients.tally.check(OK)
            report(clients.tally.summary())
            assert server.metric("sessions") == before + SCALE.tiny + 1
            back = clients.count_anew()
            for some in _in_groups(random.Random(1).sample(tiny, SCALE.tiny // 10), 16):
                await together(one.insist("And now?", 2) for one in some)
            back.check(OK)
            report(f"tiny agents, when they come back: {back.summary()}")
            assert back.hit_rate() > 0.95
            report(f"{watch.look().resident >> 20} MB are resident")

    asyncio.run(load())


def _in_groups(clients: list[Client], size: int) -> Iterator[list[Client]]:
    return (clients[at : at + size] for at in range(0, len(clients), size))
