"""More clients than a server has room for: who is refused is told when, and nobody is forgotten."""

import asyncio
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.servers import Server, served
from tests.stress.clients import Client, Crowd, crowd, together
from tests.stress.conftest import Report
from tests.stress.scale import SCALE
from tests.stress.tally import OK, REFUSED, Tally
from tests.stress.watch import Watch, rests, watching

LONG = 60  # tokens of an answer that keeps its place for a while
SHARE = 0.8  # of what is answered when all places are taken, and nobody is refused
TINY_POOL = ("--memory-budget=1MB", "--max-batch=4", "--max-queue=12", "--queue-timeout=20")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Server]:
    """A server that has room for three blocks of rows, four turns, and twelve that wait."""
    with served(tmp_path_factory.mktemp("overload") / "home", model, *TINY_POOL) as server:
        yield server


async def _recovered(server: Server, of: Crowd, clients: list[Client]) -> None:
    """Nothing is left of the load: everybody gets an answer at the first attempt."""
    await rests(server)
    assert server.client.get("/health/ready").status_code == 200
    tally = of.count_anew()
    for client in clients:
        await client.ask("Are you there?")
    tally.check(OK)


def test_of_a_burst_on_a_tiny_pool_all_are_answered_or_told_when_to_come_back(
    server: Server, report: Report
) -> None:
    async def load() -> None:
        async with crowd(server.url) as clients:
            burst = clients.clients("burst", SCALE.burst)
            tally = clients.tally
            await together(
                one.ask("What is new?", LONG, stream=number % 2 == 0)
                for number, one in enumerate(burst)
            )
            report(tally.summary())
            tally.check(OK, REFUSED)
            assert tally.statuses.keys() == {OK, REFUSED}
            assert len(tally.outcomes) == SCALE.burst
            await _recovered(server, clients, burst[:10])

    asyncio.run(load())


def test_every_client_that_comes_back_when_it_is_told_to_is_answered(
    server: Server, report: Report
) -> None:
    async def load() -> None:
        async with crowd(server.url) as clients:
            retriers = clients.clients("retrier", SCALE.retriers)
            await together(
                one.insist("What is new?", LONG // 2, stream=number % 2 == 0)
                for number, one in enumerate(retriers)
            )
            report(clients.tally.summary())
            clients.tally.check(OK, REFUSED)
            assert clients.tally.statuses[OK] == SCALE.retriers
            assert clients.tally.statuses[REFUSED] > 0
            await _recovered(server, clients, retriers[:10])

    asyncio.run(load())


async def _talk(client: Client) -> None:
    """Short conversations, one after another, for ever."""
    for number in count():
        if number % 4 == 0:
            client.start_over()
        await client.insist(f"Question {number}?", LONG // 2)


async def _answered(of: Crowd, prefix: str, clients: int, watch: Watch) -> Tally:
    """What so many clients are told while the server works for a window of processor time."""
    talks = [asyncio.create_task(_talk(one)) for one in of.clients(prefix, clients)]
    try:
        await watch.uses(SCALE.window / 2)  # till all are there
        tally = of.count_anew()
        await watch.uses(SCALE.window)
        of.count_anew()
    finally:
        for talk in talks:
            talk.cancel()
        await asyncio.wait(talks)
    for talk in talks:
        assert talk.cancelled() or talk.exception() is None, talk.exception()
    return tally


def test_overload_costs_little_of_what_is_answered(server: Server, report: Report) -> None:
    """The same work of the processor, by turns with as many clients as fit and with many more.

    Counted per second of the server's own processor time, which neighbours do not take away.
    """

    async def load() -> None:
        saturated, overloaded = 0, 0
        async with crowd(server.url) as clients:
            watch = Watch.of(server)
            for window in range(SCALE.windows):
                few = await _answered(clients, f"few-{window}", SCALE.saturating, watch)
                await rests(server)
                many = await _answered(clients, f"many-{window}", SCALE.overloading, watch)
                await rests(server)
                few.check(OK)
                many.check(OK, REFUSED)
                assert many.statuses[REFUSED] > 0
                saturated += len(few.answers)
                overloaded += len(many.answers)
        report(f"{saturated} turns when saturated, {overloaded} when overloaded")
        assert overloaded >= SHARE * saturated

    asyncio.run(load())


def test_nobody_is_lost_while_more_and_more_clients_come(server: Server, report: Report) -> None:
    async def load() -> None:
        async with crowd(server.url) as clients:
            for size in SCALE.ramp:
                tally = clients.count_anew()
                ramp = clients.clients(f"ramp-{size}", size, words=5)
                await together(one.insist("What is new?", 20) for one in ramp)
                report(f"{size} clients: {tally.summary()}")
                tally.check(OK, REFUSED)
                assert tally.statuses[OK] == size
            await _recovered(server, clients, ramp[:10])

    asyncio.run(load())


def test_after_an_overload_the_server_is_as_it_was_before(server: Server, report: Report) -> None:
    async def load() -> None:
        async with crowd(server.url) as clients, watching(server) as watch:
            regulars = clients.clients("regular", 4)
            await together(one.insist("Who are you?") for one in regulars)
            before = watch.look()
            for wave in range(3):  # of clients that do not listen, and come at once again
                rude = clients.clients(f"rude-{wave}", SCALE.burst, words=5)
                await together(one.ask("What is new?", LONG) for one in rude)
            clients.tally.check(OK, REFUSED)
            report(clients.tally.summary())
            await clients.hang_up()
            await _recovered(server, clients, regulars)
            assert clients.tally.hit_rate() > 0.9  # what the regulars said is not forgotten
            await clients.hang_up()
            await watch.until(lambda now: now.files <= before.files)
            report(f"resident {before.resident >> 20} MB before, {watch.look().resident >> 20} MB")

    asyncio.run(load())
