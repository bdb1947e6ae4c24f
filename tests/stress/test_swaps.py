"""Models that take each other's place under load: nobody fails, and nothing is forgotten."""

import asyncio
import random
from functools import partial
from pathlib import Path

from tests.servers import served
from tests.stress.clients import Client, Crowd, crowd, meanwhile, together
from tests.stress.conftest import Report
from tests.stress.scale import SCALE
from tests.stress.tally import OK, REFUSED, UNAVAILABLE
from tests.stress.watch import LATE_WORKERS, Sample, rests, until, watching
from tests.tiny_models import tiny_llama

ROOM = ("--memory-budget=16MB", "--max-batch=6", "--max-queue=40")


async def _swap(clients: Crowd, model: Path, within: float) -> None:
    asked = {"model": str(model), "within": within}
    answer = await clients.http.post("/v1/admin/model", json=asked)
    assert answer.status_code == 200, answer.text


async def _know_again(clients: Crowd, witnesses: list[Client]) -> None:
    tally = clients.count_anew()
    await together(one.insist("What did I say?", 4) for one in witnesses)
    tally.check(OK, REFUSED, UNAVAILABLE)
    for one in tally.answers:
        assert one.cached >= one.expected - 8, one


async def _fill_pool(clients: Crowd) -> None:
    """Have so much prepared at once that the event loop's pool has all the threads it ever has."""
    said = {"model": "tiny", "messages": [{"role": "user", "content": "and so on " * 3000}]}
    counts = [clients.http.post("/v1/messages/count_tokens", json=said) for _ in range(60)]
    assert all(answer.is_success for answer in await asyncio.gather(*counts))


def test_models_are_swapped_under_load_and_back_and_agents_go_on(
    tmp_path: Path, report: Report
) -> None:
    places = (tmp_path / place / "tiny" for place in "ab")  # clients know both by this name
    models = [tiny_llama(place, seed, context=8192) for seed, place in enumerate(places)]

    async def load() -> None:
        rested: list[Sample] = []
        with served(tmp_path / "home", models[0], *ROOM) as server:
            async with crowd(server.url) as clients, watching(server) as watch:
                busy = clients.clients("busy", SCALE.swapped)
                await _fill_pool(clients)
                pairs = [clients.clients(f"witness-{place}", 4) for place in "ab"]
                for number in range(SCALE.swaps):
                    await _know_again(clients, pairs[number % 2])
                    tally = clients.count_anew()
                    async with meanwhile(partial(_turn, busy), clients=SCALE.swapped):
                        await _some_answers(clients, SCALE.swapped)
                        await _swap(clients, models[(number + 1) % 2], within=60)
                        await _some_answers(clients, SCALE.swapped)
                    tally.check(OK, REFUSED, UNAVAILABLE)
                    report(tally.summary())
                    await rests(server)
                    rested.append(watch.look())
                await _know_again(clients, pairs[SCALE.swaps % 2])
            assert server.stop() == 0
        report(" ".join(f"{one.resident >> 20} MB, {one.threads} threads;" for one in rested))
        assert rested[-1].threads <= rested[0].threads + LATE_WORKERS

    asyncio.run(load())


async def _turn(idle: list[Client]) -> None:
    client = idle.pop()
    if len(client.messages) > 20:
        client.start_over()
    await client.insist("What is new?", random.choice((4, 30)))
    idle.append(client)


async def _some_answers(clients: Crowd, more: int) -> None:
    wanted = len(clients.tally.answers) + more
    await until(lambda: len(clients.tally.answers) >= wanted)
