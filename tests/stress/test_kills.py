"""A loaded server that is killed: every turn that a client was told is there when it comes back."""

import asyncio
import random
from itertools import count
from pathlib import Path

from tokenizers import Tokenizer

from tests.servers import Server, served
from tests.stress.clients import Client, Crowd, together
from tests.stress.clients import crowd as crowd_of
from tests.stress.conftest import Report
from tests.stress.scale import SCALE
from tests.stress.tally import CUT_OFF, OK, REFUSED

AT_LENGTH = " Tell me, and mind that I say this at such length that a lost turn would be seen."
AGAIN = 1  # the token that an answer ends with was said, and its row never computed
LONGEST = 2_000  # tokens of a conversation, which have to fit into little memory
NARROW = ("--memory-budget=4MB", "--max-batch=6", "--max-queue=8")


def _plain(model: Path) -> dict[str, object]:
    """Keeps answers to ASCII: of control tokens and cut characters nothing is said, nor kept."""
    known = Tokenizer.from_file(str(model / "tokenizer.json")).get_vocab()
    banned = [token for text, token in known.items() if len(text) > 1 or not text.isascii()]
    return {"logit_bias": {str(token): -100 for token in banned}}


async def _talk(client: Client, chance: random.Random) -> None:
    """Ask one question after another until the server is gone."""
    for number in count():
        stream = chance.random() < 0.7
        outcome = await client.insist(
            f"Question {number}?{AT_LENGTH}", chance.randint(1, 20), stream=stream
        )
        if outcome.status == CUT_OFF:
            return
        if client.known > LONGEST:
            client.start_over()


async def _lives(server: Server, crowd: Crowd, clients: list[Client], seed: int) -> None:
    """Let all talk, and kill the server when so many turns were answered as chance says."""
    tally, chance = crowd.count_anew(), random.Random(seed)
    turns = chance.randint(len(clients), 6 * len(clients))
    talks = [
        asyncio.create_task(_talk(one, random.Random(f"{seed} {one.name}"))) for one in clients
    ]
    while len(tally.answers) < turns:
        await asyncio.sleep(0.002)
        assert server.is_running
    await asyncio.to_thread(server.kill)
    await asyncio.gather(*talks)
    tally.check(OK, REFUSED, CUT_OFF)


async def _all_is_known(crowd: Crowd, clients: list[Client]) -> None:
    tally = crowd.count_anew()
    await together(one.insist(f"What did I say?{AT_LENGTH}", 4) for one in clients)
    tally.check(OK, REFUSED)
    for one in tally.answers:
        assert one.cached >= one.expected - AGAIN, one


def test_what_was_told_before_a_kill_under_load_is_known_after_it(
    tmp_path: Path, model: Path, report: Report
) -> None:
    async def load() -> None:
        clients: list[Client] = []
        for seed in range(SCALE.kills + 1):
            with served(tmp_path / "home", model, *NARROW) as server:
                async with crowd_of(server.url) as crowd:
                    clients = clients or crowd.clients("agent", SCALE.killed, words=40)
                    for one in clients:
                        one.crowd, one.fields = crowd, _plain(model)
                    await _all_is_known(crowd, clients)
                    report(crowd.tally.summary())
                    if seed < SCALE.kills:
                        await _lives(server, crowd, clients, seed)
                    else:
                        assert server.stop() == 0

    asyncio.run(load())
