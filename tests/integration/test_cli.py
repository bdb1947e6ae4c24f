"""The command line as processes: serve, chat, signals."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from attrs import define

from tests.tiny_models import tiny_llama

COMMAND = [sys.executable, "-c", "from agentcache.cli import main; main()"]
READY = "agentcache is ready on "
SECONDS = 120
SHORT = ("--max-tokens", "20")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny", seed=1)


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that, greedily, goes on for about a thousand tokens: seconds, on any machine."""
    path = tmp_path_factory.mktemp("models") / "slow" / "tiny"
    return tiny_llama(path, seed=2, layers=8, hidden=256, intermediate=512)


@define
class Server:
    """A server process, once it is ready."""

    process: subprocess.Popen[str]
    url: str

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Its exit status and what else it wrote to stderr."""
        self.process.send_signal(number)
        _, told = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, told


@contextmanager
def served(home: Path, model: Path, *options: str) -> Iterator[Server]:
    arguments = ["serve", "--home", home, "--model", model, "--port", "0", *options]
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    assert process.stderr is not None
    try:
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith(READY):
                yield Server(process, line.removeprefix(READY).strip())
                return
        pytest.fail("".join(lines))
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _run(*arguments: object, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=said,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=SECONDS,
        check=False,
    )


def _asked(tokens: int, stream: bool = False) -> dict[str, object]:
    messages = [{"role": "user", "content": "xyzzy"}]
    asked = {"model": "tiny", "messages": messages, "max_tokens": tokens, "stream": stream}
    return asked | {"temperature": 0}


def _ask(server: Server, tokens: int) -> httpx.Response:
    url = f"{server.url}/v1/chat/completions"
    return httpx.post(url, json=_asked(tokens), timeout=SECONDS)


@contextmanager
def _streaming(server: Server, tokens: int) -> Iterator[Iterator[str]]:
    """The lines of an answer that has begun."""
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=_asked(tokens, True), timeout=SECONDS) as response:
        lines = response.iter_lines()
        next(lines)
        yield lines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_answers_and_stops_in_order_when_told_to(
    tmp_path: Path, model: Path, number: int
) -> None:
    with served(tmp_path / "home", model) as server:
        assert httpx.get(f"{server.url}/health/ready", timeout=SECONDS).status_code == 200
        assert _ask(server, 5).json()["usage"]["completion_tokens"] == 5
        metrics = httpx.get(f"{server.url}/metrics", timeout=SECONDS).text
        assert 'agentcache_turns_total{finish="length"} 1.0' in metrics
        status, _ = server.stop(number)
    assert status == 0


def test_a_turn_that_runs_when_the_server_is_told_to_stop_is_answered_to_its_end(
    tmp_path: Path, model: Path
) -> None:
    with (
        served(tmp_path / "home", model) as server,
        _streaming(server, tokens=300) as lines,
    ):
        server.process.send_signal(signal.SIGTERM)
        *_, last, done = [line for line in lines if line]
        server.process.wait(SECONDS)
        assert server.process.returncode == 0
    assert done == "data: [DONE]"
    assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"]


def test_a_turn_that_takes_longer_than_the_server_has_is_told_so(
    tmp_path: Path, slow_model: Path
) -> None:
    with (
        served(tmp_path / "home", slow_model, "--shutdown-timeout", "0") as server,
        _streaming(server, tokens=4_000) as lines,
    ):
        server.process.send_signal(signal.SIGTERM)
        *_, last = [line for line in lines if line]
        server.process.wait(SECONDS)
        assert server.process.returncode == 0
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["code"], "draining" in error["message"]) == ("unavailable", True)


def test_a_second_signal_ends_the_server_at_once(tmp_path: Path, slow_model: Path) -> None:
    with served(tmp_path / "home", slow_model) as server, _streaming(server, tokens=4_000):
        server.process.send_signal(signal.SIGTERM)
        while httpx.get(f"{server.url}/health/ready", timeout=SECONDS).status_code != 503:
            pass
        status, _ = server.stop()
    assert status == -signal.SIGTERM


def test_log_lines_are_json_if_so_wanted_and_have_no_words_of_the_conversation(
    tmp_path: Path, model: Path
) -> None:
    with served(tmp_path / "home", model, "--log-format", "json") as server:
        _ask(server, 3)
        _, told = server.stop()
    lines = [json.loads(line) for line in told.splitlines()]
    request = next(line for line in lines if line["event"] == "request")
    assert (request["path"], request["status"]) == ("/v1/chat/completions", 200)
    assert "xyzzy" not in told


def test_a_home_has_one_owner_and_others_are_told_who(tmp_path: Path, model: Path) -> None:
    home = tmp_path / "home"
    with served(home, model) as server:
        other = _run("serve", "--home", home, "--model", model, "--port", "0")
        assert (other.returncode, other.stderr.count("\n")) == (1, 1)
        assert server.url in other.stderr


def test_a_port_that_is_taken_is_one_line(tmp_path: Path, model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        other = _run("serve", "--home", tmp_path / "home", "--model", model, "--port", port)
    assert (other.returncode, other.stderr.count("\n")) == (1, 1)
    assert "choose another --port" in other.stderr


def test_a_model_that_is_nowhere_is_one_line(tmp_path: Path) -> None:
    other = _run("serve", "--home", tmp_path / "home", "--model", tmp_path / "no", "--port", "0")
    assert other.returncode == 1
    assert other.stderr.splitlines()[-1].startswith("Error: model ")
    assert "Traceback" not in other.stderr


def test_an_agent_remembers_from_one_chat_to_the_next(tmp_path: Path, model: Path) -> None:
    chat = ("chat", "ann", "--home", tmp_path / "home", "--model", model, *SHORT)
    first = _run(*chat, said="Hello, I am Ann.\n")
    second = _run(*chat, said="Who am I?\n")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    remembered, prompt = _remembered(second)
    assert 0 < remembered < prompt
    assert remembered >= _remembered(first)[1]


def test_a_chat_goes_through_the_server_that_owns_the_home(tmp_path: Path, model: Path) -> None:
    home = tmp_path / "home"
    chat = ("chat", "ann", "--home", home, *SHORT)
    with served(home, model) as server:
        first = _run(*chat, said="Hello, I am Ann.\n")
        second = _run(*chat, said="Who am I?\n")
        assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
        assert _remembered(second)[0] >= _remembered(first)[1]
        metrics = httpx.get(f"{server.url}/metrics", timeout=SECONDS).text
    assert f"agentcache_prompt_tokens_total {sum(_prompts(first, second))}.0" in metrics


def test_a_chat_that_is_refused_says_why_and_fails(tmp_path: Path, model: Path) -> None:
    home = tmp_path / "home"
    with served(home, model, "--context", "40"):
        refused = _run("chat", "ann", "--home", home, said="x" * 100 + "\n")
    assert refused.returncode == 1
    assert "prompt is too long" in refused.stderr
    assert "Traceback" not in refused.stderr


def _remembered(chat: subprocess.CompletedProcess[str]) -> tuple[int, int]:
    """What the last line of a chat says: tokens remembered, tokens in all."""
    remembered, _, prompt, *_ = chat.stderr.strip().splitlines()[-1].split()
    return int(remembered), int(prompt)


def _prompts(*chats: subprocess.CompletedProcess[str]) -> list[int]:
    return [_remembered(chat)[1] for chat in chats]
