"""Clients that go away in the middle of anything, or hardly listen: nobody else notices."""

import asyncio
import json
import random
import socket
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.agents import passed
from tests.servers import Server, served
from tests.stress.clients import Client, Crowd, crowd, together
from tests.stress.conftest import Report
from tests.stress.scale import SCALE
from tests.stress.tally import LEFT, OK, REFUSED, Tally
from tests.stress.watch import Watch, rests

SOME_ROOM = ("--memory-budget=8MB", "--max-batch=6", "--max-queue=40")
LONG = 1_500  # tokens: more than what a socket and its reader take in before somebody waits


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Server]:
    """A server with some room: six turns at once, and forty that wait."""
    with served(tmp_path_factory.mktemp("leaving") / "home", model, *SOME_ROOM) as server:
        yield server


async def _leave_again_and_again(client: Client, chance: random.Random) -> None:
    for number in range(SCALE.storms):
        stay = chance.choice((0.0, 0.01, 0.1, 0.3, 1.0)) * chance.random()
        await client.ask("Tell me all.", LONG, stream=number % 2 == 0, leave_after=stay)


async def _stay(client: Client, tally: Tally) -> None:
    for number in range(4):
        tally.add(await client.insist(f"Question {number}?"))


def test_a_storm_of_clients_that_leave_takes_nothing_from_those_who_stay(
    server: Server, report: Report
) -> None:
    async def load() -> None:
        async with crowd(server.url) as clients:
            watch, steady = Watch.of(server), Tally()
            regulars, fleeting = clients.clients("stay", 6), clients.clients("go", SCALE.storm)
            await together(one.ask("Who are you?") for one in regulars)
            await clients.hang_up()
            before = watch.look()
            await together(
                [_stay(one, steady) for one in regulars]
                + [_leave_again_and_again(one, random.Random(str(one.name))) for one in fleeting]
            )
            report(clients.tally.summary())
            clients.tally.check(OK, REFUSED, LEFT)
            steady.check(OK)
            assert clients.tally.statuses[LEFT] > SCALE.storm
            await rests(server)  # though nobody's answer has come to its end
            clients.count_anew()
            await together(one.insist("Are you there?") for one in fleeting)
            clients.tally.check(OK, REFUSED)
            await clients.hang_up()
            await watch.until(lambda now: now.files <= before.files)

    asyncio.run(load())


def _asking(server: Server, of: Crowd, name: str) -> socket.socket:
    """A connection with as small a buffer as there is, on which a long answer was asked for."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    url = server.client.base_url
    connection.connect((url.host, url.port))
    messages = [{"role": "user", "content": f"{name}: tell me all."}]
    asked = {
        "model": of.model,
        "messages": messages,
        "max_tokens": LONG,
        "stream": True,
        "temperature": 0,
    }
    body = json.dumps(asked).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {url.host}\r\nx-agent-id: {name}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


async def _read(connection: socket.socket, most: int) -> bytes:
    """All that comes, so many bytes at a time, until the stream says that it is done."""
    connection.setblocking(False)
    loop, read = asyncio.get_running_loop(), b""
    while b"data: [DONE]" not in read[-200:]:
        piece = await loop.sock_recv(connection, most)
        assert piece, "the server hung up"
        read += piece
    return read


def test_clients_that_hardly_listen_keep_nobody_waiting(server: Server, report: Report) -> None:
    async def load() -> None:
        async with crowd(server.url) as clients:
            watch = Watch.of(server)
            before = watch.look()
            slow = [_asking(server, clients, f"slow-{number}") for number in range(SCALE.slow)]
            try:
                others = clients.clients("other", 10)
                await together(one.insist("What is new?") for one in others)
                clients.tally.check(OK, REFUSED)
                await rests(server)  # their places are free, though nothing has been read yet
                report(f"{(watch.look().resident - before.resident) >> 10} KB more are resident")
                read = await asyncio.gather(*(_read(one, 512) for one in slow[::2]))
                assert all(b'"finish_reason":"' in one for one in read)
            finally:
                for connection in slow:  # half of them never read anything
                    connection.close()
            await clients.hang_up()
            await watch.until(lambda now: now.files <= before.files)

    asyncio.run(load())


def test_an_agent_that_is_always_cut_off_gets_its_answer_in_the_end(server: Server) -> None:
    """What was computed is kept, so that however often it is cut off nothing is computed twice.

    It gets ever more patient, because how far it comes at once depends on the machine.
    """

    async def load() -> None:
        async with crowd(server.url) as clients:
            client, before = clients.client("unlucky", words=900), passed(server)
            for attempt in count():
                patience = 0.02 * 1.02**attempt
                outcome = await client.ask("Well?", 4, leave_after=patience)
                if outcome.is_answer:
                    break
            clients.tally.check(OK, REFUSED, LEFT)
            await rests(server)
            again = passed(server) - before - outcome.prompt - outcome.completion
            assert again <= 6 * attempt  # what was said, and the last token before it

    asyncio.run(load())
