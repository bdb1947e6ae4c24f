"""A server that is asked to stop, whatever it is doing."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.agents import Agent, share_served
from tests.homes import Remains
from tests.servers import SECONDS, Server, served, until
from tests.tiny_models import tiny_llama

SERVED = 0.98  # of the tokens of the turn before
AT_LENGTH = "Tell me everything, at length."
SAID = [{"role": "user", "content": "Hi"}]
DIALECTS: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": SAID},
    "completions": {"prompt": "Hi"},
    "messages": {"messages": SAID, "max_tokens": 5},
    "responses": {"input": "Hi"},
}


def connection(server: Server) -> socket.socket:
    """A connection of its own, on which anything can be sent."""
    url = httpx.URL(server.url)
    return socket.create_connection((url.host, url.port), timeout=SECONDS)


def signalled(server: Server, number: signal.Signals = signal.SIGTERM) -> None:
    """Ask it to stop, and return when it takes no more turns."""
    server.process.send_signal(number)
    until(lambda: "stopping" in server.log.read_text())


@contextmanager
def stuck(home: Path, model: Path, at: str = "load") -> Iterator["subprocess.Popen[bytes]"]:
    """A server that is being started; a model that is called `stuck` it never loads, or it never
    comes back from a step once there is a file `stuck` beside its home.
    """
    script = Path(__file__).with_name(f"stuck_{at}.py")
    options = ["serve", "--home", home, "--model", model, "--port", "0", "--threads", "1"]
    with home.with_name("stuck.log").open("wb") as told:
        process = subprocess.Popen(
            [sys.executable, script, *map(str, options)],
            stdout=told,
            stderr=told,
            env=os.environ | {"AGENTCACHE_TEST_STUCK": str(home.with_name("stuck"))},
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def client_of(log: Path) -> Iterator[httpx.Client]:
    """A client of the server that says in `log` that it is ready."""
    until(lambda: "ready on" in log.read_text())
    url = log.read_text().split("ready on ")[1].split()[0]
    with httpx.Client(base_url=url, timeout=SECONDS, trust_env=False) as client:
        yield client


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_streams_that_run_are_finished_and_nobody_else_is_kept_waiting(
    tmp_path: Path, model: Path, number: signal.Signals
) -> None:
    home, agent = tmp_path / "home", Agent.with_notes("Impatient")
    patience = ("--shutdown-timeout", f"{SECONDS:.0f}")  # on a busy machine it takes long
    with (
        served(home, model, *patience) as server,
        connection(server) as idle,
        connection(server) as slow,
    ):
        idle.sendall(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert idle.recv(8).startswith(b"HTTP/1.1")
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 900\r\n"
        slow.sendall(head + b'content-type: application/json\r\n\r\n{"model":')
        with agent.asking(server, AT_LENGTH, 1000) as stream:
            pieces = iter(stream)
            next(pieces)
            signalled(server, number)
            for _ in pieces:
                pass
        assert agent.answers[-1].completion == 1000
        assert server.process.wait(SECONDS) == 0
    Remains.of(home).check()
    with served(home, model) as server:
        assert share_served(server, agent) >= SERVED


def test_a_stream_that_takes_too_long_is_told_so_and_what_it_computed_is_kept(
    tmp_path: Path, model: Path
) -> None:
    home, agent = tmp_path / "home", Agent.with_notes("Impatient")
    with served(home, model, "--shutdown-timeout", "0.1") as server:
        with agent.asking(server, AT_LENGTH, 6000) as stream:
            stream.first(pieces=2)
            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(AssertionError, match="the server is draining"):
                list(stream)
        assert server.process.wait(SECONDS) == 0
    Remains.of(home).check()
    with served(home, model) as server:
        retry = agent.ask(server, AT_LENGTH)
        assert retry.prompt - retry.cached <= 1


def test_while_it_drains_it_is_live_and_takes_no_more(tmp_path: Path, model: Path) -> None:
    agent = Agent.with_notes("Impatient")
    with served(tmp_path / "home", model) as server, ExitStack() as open_:
        asked = [_request(server, path, said) for path, said in DIALECTS.items()]
        kept = [open_.enter_context(connection(server)) for _ in range(2 + len(asked))]
        with agent.asking(server, AT_LENGTH, 6000) as stream:
            stream.first(pieces=2)
            signalled(server)
            answers = [
                _answer(kept[0], b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"),
                _answer(kept[1], b"GET /health/ready HTTP/1.1\r\nhost: localhost\r\n\r\n"),
                *(_answer(*one) for one in zip(kept[2:], asked, strict=True)),
            ]
        assert [one.split()[1] for one in answers] == [b"200", *[b"503"] * (1 + len(asked))]
        assert all(b"retry-after: 1" in one for one in answers[2:])
        assert all(b"overloaded_error" in one for one in answers[2:])
        assert server.process.wait(SECONDS) == 0


def test_a_second_signal_ends_it_at_once_and_loses_no_turn_that_was_answered(
    tmp_path: Path, model: Path
) -> None:
    home, agent = tmp_path / "home", Agent.with_notes("Impatient")
    with served(home, model) as server:
        agent.ask(server, "Who are you?")
        with agent.twin().asking(server, AT_LENGTH, 6000) as stream:
            stream.first(pieces=2)
            signalled(server)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(SECONDS) == -signal.SIGTERM
    Remains.of(home)
    with served(home, model) as server:
        assert share_served(server, agent) >= SERVED


def test_a_model_that_is_being_loaded_is_not_waited_for(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "stuck", 1)
    with stuck(tmp_path / "home", model) as process:
        until(lambda: "for ever" in (tmp_path / "stuck.log").read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0


def test_a_swap_that_is_being_made_is_not_waited_for(tmp_path: Path, model: Path) -> None:
    home, agent = tmp_path / "home", Agent.with_notes("Swapped")
    never = tiny_llama(tmp_path / "stuck", 1)
    log = tmp_path / "stuck.log"
    with stuck(home, model) as process, client_of(log) as client:
        server = Server(process, client, log)
        agent.ask(server, "Who are you?")
        swapping = threading.Thread(target=_swap, args=(client, never))
        swapping.start()
        until(lambda: "for ever" in log.read_text())
        assert server.stop() == 0
        swapping.join(SECONDS)
    Remains.of(home).check()
    with served(home, model) as server:
        assert share_served(server, agent) >= SERVED


def test_an_engine_that_never_comes_back_from_a_step_is_dead_and_not_waited_for(
    tmp_path: Path, model: Path
) -> None:
    home, agent = tmp_path / "home", Agent.with_notes("Stuck")
    log = tmp_path / "stuck.log"
    with stuck(home, model, at="step") as process, client_of(log) as client:
        server = Server(process, client, log)
        agent.ask(server, "Who are you?")
        (tmp_path / "stuck").touch()
        with agent.twin().asking(server, AT_LENGTH, 6000):
            until(lambda: client.get("/health/live").status_code == 503)
            told = client.get("/health/live").json()["detail"]["engine"]
        assert told.startswith("has not finished a step for")
        assert server.stop() == 1
    assert "not waited for" in log.read_text()
    Remains.of(home)
    with served(home, model) as server:
        assert share_served(server, agent) >= SERVED


def test_a_model_that_is_being_fetched_is_not_waited_for(tmp_path: Path, model: Path) -> None:
    """Its weights are a pipe that nobody writes to."""
    endless = tiny_llama(tmp_path / "endless", 1)
    (endless / "model.safetensors").unlink()
    os.mkfifo(endless / "model.safetensors")
    with served(tmp_path / "home", model) as server:
        swapping = threading.Thread(target=_swap, args=(server.client, endless))
        swapping.start()
        agent = Agent.with_notes("Served")
        agent.ask(server, "Who are you?")
        assert server.stop() == 0
        swapping.join(SECONDS)


def _swap(client: httpx.Client, model: Path) -> None:
    try:
        client.post("/v1/admin/model", json={"model": str(model)})
    except httpx.TransportError:
        return  # the server is gone


def _request(server: Server, path: str, said: dict[str, Any]) -> bytes:
    name = server.client.get("/v1/models").json()["data"][0]["id"]
    body = json.dumps({"model": name, **said}).encode()
    head = b"POST /v1/%b HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
    return head % (path.encode(), len(body)) + body


def _answer(connected: socket.socket, request: bytes) -> bytes:
    """The whole of it: head and body may come in pieces."""
    connected.sendall(request)
    answer = HTTPResponse(connected)
    answer.begin()
    head = f"HTTP/1.1 {answer.status} {answer.reason}\r\n{answer.headers}".encode()
    return head + answer.read()
