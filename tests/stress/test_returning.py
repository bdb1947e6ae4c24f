"""Agents that come back again and again, with less memory than they need: the cache knows them."""

import asyncio
import random
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from agentcache.domain.trace import TRACED
from tests.agents import passed
from tests.servers import Server, served
from tests.stress.clients import Client, Crowd, crowd, meanwhile, together
from tests.stress.conftest import Report
from tests.stress.scale import SCALE
from tests.stress.tally import OK, REFUSED
from tests.stress.watch import rests

KNOWN = 0.95  # of what they were told before, the least that returning agents do not wait for again
LITTLE_MEMORY = ("--memory-budget=4MB", "--max-batch=6", "--max-queue=200")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Server]:
    """A server that holds 4,000 rows in either tier of memory, and all of them on disk."""
    with served(tmp_path_factory.mktemp("returning") / "home", model, *LITTLE_MEMORY) as server:
        yield server


def test_agents_that_ask_without_a_pause_are_never_run_twice(
    server: Server, report: Report
) -> None:
    agents, turns = SCALE.rapid

    async def talk(client: Client) -> None:
        for number in range(turns):
            await client.ask(f"{number}?", 4, stream=number % 2 == 0)

    async def load() -> None:
        async with crowd(server.url) as clients:
            before = passed(server)
            compared = server.metric("canaries_total", outcome="agreed")
            await together(talk(one) for one in clients.clients("rapid", agents))
            tally = clients.tally
            report(tally.summary())
            tally.check(OK)
            assert len(tally.outcomes) == agents * turns
            assert {"hot", "warm", "cold"} <= {one.tier for one in tally.answers}
            needed = sum(one.prompt - one.cached + one.completion - 1 for one in tally.answers)
            again = TRACED * (server.metric("canaries_total", outcome="agreed") - compared)
            assert passed(server) - before == needed + again
            assert tally.hit_rate() > KNOWN

    asyncio.run(load())


def test_what_returning_agents_said_is_found_though_others_come_and_go(
    server: Server, report: Report
) -> None:
    strangers = count()

    async def load() -> None:
        async with crowd(server.url) as clients:
            residents = clients.clients("resident", SCALE.returning, words=40)
            await together(one.ask("Who are you?") for one in residents)
            tally = clients.count_anew()

            async def stranger() -> None:
                await clients.client(f"stranger-{next(strangers)}", words=60).ask("Hello?", 4)

            async with meanwhile(stranger, clients=2):
                for turn in range(SCALE.returns):
                    random.Random(turn).shuffle(residents)
                    await together(
                        _in_turn(residents[part::4], f"And what of {turn}?") for part in range(4)
                    )
            report(f"{tally.summary()}; hit rate {tally.hit_rate():.4f}")
            tally.check(OK)
            assert "cold" in {one.tier for one in tally.answers}
            assert tally.hit_rate() > KNOWN

    asyncio.run(load())


async def _in_turn(clients: list[Client], text: str) -> None:
    for client in clients:
        await client.ask(text)


def test_a_realistic_mix_is_answered_without_an_error(server: Server, report: Report) -> None:
    async def load() -> None:
        async with crowd(server.url) as clients:
            chance = random.Random(7)
            named = clients.clients("mixed", SCALE.mixed // 2, words=60)
            unnamed = [clients.client() for _ in range(SCALE.mixed // 4)]
            heavy = clients.clients("heavy", SCALE.mixed // 4, words=300)
            crowded = (*named, *unnamed, *heavy)
            await together(
                mixed_turns(clients, one, random.Random(chance.random())) for one in crowded
            )
            report(f"{clients.tally.summary()}; hit rate {clients.tally.hit_rate():.4f}")
            clients.tally.check(OK, REFUSED)
            assert clients.tally.statuses[OK] >= len(crowded) * SCALE.mixed_turns
            assert clients.tally.hit_rate() > KNOWN
            await rests(server)

    asyncio.run(load())


async def mixed_turns(clients: Crowd, client: Client, chance: random.Random) -> None:
    """Turns of a conversation: with pauses, some long, some not streamed, some by newcomers."""
    for number in range(SCALE.mixed_turns):
        await asyncio.sleep(chance.expovariate(4.0))  # the client thinks
        question = f"Question {number}: " + "why? " * chance.choice((1, 1, 1, 40))
        length = chance.choice((4, 4, 8, 40))
        await client.insist(question, length, stream=chance.random() < 0.7)
        if chance.random() < 0.2:
            await clients.client().insist("Is anybody there?", 4)
