"""Drive any OpenAI-compatible server as agents do: processes, streamed turns, what they cost."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import define, field, frozen
from recording import ROOT

MODEL = "smollm2-135m"
THEIR_MODEL = "default_model"  # what mlx_lm.server calls the one that it was started with
READY_SECONDS = 300
VOCABULARY = (
    "system agent memory cache tensor river market engine bridge signal garden letter policy "
    "archive window planet copper harbour ledger compass orchard violin granite meadow lantern "
    "thunder velvet canyon pepper saddle marble"
)
# The same BLAS as ours, in somebody else's server.
MLX_LM = (
    "from agentcache.adapters.mlx import blas; blas.load(); blas.set_threads({threads}); "
    "from mlx_lm.server import main; main()"
)


@frozen
class Turn:
    """One streamed turn: seconds to the first text and to the end, and the server's own count.

    `stamps` are the times (`time.perf_counter`) at which pieces of text arrived.
    """

    first: float
    total: float
    prompt: int
    completion: int
    cached: int
    text: str
    stamps: tuple[float, ...] = ()


@define
class Agent:
    """One agent's conversation, as its client keeps it."""

    name: str
    messages: list[dict[str, str]]
    turns: list[Turn] = field(factory=list)

    @classmethod
    def with_notes(cls, name: str, seed: int, words: int) -> "Agent":
        """An agent whose system prompt has `words` random words."""
        notes = " ".join(random.Random(seed).choices(VOCABULARY.split(), k=words))
        return cls(name, [{"role": "system", "content": f"You are {name}. Notes: {notes}"}])

    def ask(self, server: "Server", question: str, max_tokens: int = 8, **more: object) -> Turn:
        """Ask, and remember both the question and the answer."""
        self.messages.append({"role": "user", "content": question})
        turn = chat(server, self.messages, self.name, max_tokens, **more)
        self.messages.append({"role": "assistant", "content": turn.text})
        self.turns.append(turn)
        return turn


@frozen
class Server:
    """A running server: where it listens, which process it is, what it calls its model."""

    url: str
    process: "subprocess.Popen[bytes]"
    model: str
    boot_seconds: float

    def metric(self, name: str) -> float:
        """The value of one of agentcache's own metrics."""
        text = _get(f"{self.url}/metrics").decode()
        found = re.search(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        if found is None:
            raise LookupError(f"there is no metric {name}")
        return float(found[1])

    def resident_bytes(self) -> int:
        """Resident memory of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(found[1]) * 1024 if found else 0


def chat(
    server: Server,
    messages: list[dict[str, str]],
    agent: str,
    max_tokens: int = 8,
    **more: object,
) -> Turn:
    """One greedy streamed chat completion; `more` goes into the request.

    The first text of a turn that says nothing comes with its end.
    """
    body = {
        "model": server.model,
        "messages": messages,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **more,
    }
    headers = {"Content-Type": "application/json", "X-Agent-ID": agent}
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions", json.dumps(body).encode(), headers
    )
    started, stamps, said, usage = time.perf_counter(), [], "", {}
    with urllib.request.urlopen(request, timeout=900) as answer:
        for chunk in _events(answer):
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices") or ():
                if text := (choice.get("delta") or {}).get("content"):
                    stamps.append(time.perf_counter())
                    said += text
    ended = time.perf_counter()
    first, total = (stamps[0] if stamps else ended) - started, ended - started
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    counts = usage["prompt_tokens"], usage["completion_tokens"], cached
    return Turn(first, total, *counts, said, tuple(stamps))


@contextmanager
def running(
    command: Iterable[str],
    log: Path,
    ending: signal.Signals = signal.SIGTERM,
    model: str | None = None,
) -> Iterator[Server]:
    """Run a server; `{port}` in its command is a free port. It is ended by the signal `ending`.

    `model` is what it calls its model, if it does not tell.
    """
    port = _free_port()
    words = [word.format(port=port) for word in command]
    started = time.perf_counter()
    with log.open("ab") as output, subprocess.Popen(words, stdout=output, stderr=output) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            _await_health(url, process, log)
            served = model or json.loads(_get(f"{url}/v1/models"))["data"][0]["id"]
            server = Server(url, process, served, time.perf_counter() - started)
            chat(server, [{"role": "user", "content": "hi"}], "warm-up", 2)
            yield server
        finally:
            process.send_signal(ending)
            process.wait()


def agentcache(home: Path, folder: Path, *options: str) -> list[str]:
    """The command that serves `folder` with the memory in `home`."""
    program = str(Path(sys.executable).with_name("agentcache"))
    return [
        program,
        "serve",
        "--home",
        str(home),
        "--model",
        str(folder),
        "--port",
        "{port}",
        "--codec",
        "native",  # as other servers keep them; later options win
        *options,
    ]


def mlx_lm(folder: Path, *options: str) -> list[str]:
    """The command that serves `folder` with mlx_lm.server, on the BLAS that agentcache uses."""
    code = MLX_LM.format(threads=os.cpu_count())
    return [sys.executable, "-c", code, "--model", str(folder), "--port", "{port}", *options]


def default_model() -> Path:
    """The default model's folder, fetched and converted if it is not there yet."""
    home = ROOT / ".cache" / "home"
    program = str(Path(sys.executable).with_name("agentcache"))
    subprocess.run([program, "models", "pull", MODEL, "--home", str(home)], check=True)
    return home / "models" / MODEL


def tiny_model(scratch: Path) -> Path:
    """A model of random weights that takes no time, for quick runs; a letter is a token."""
    sys.path.insert(0, str(ROOT))
    from tests.tiny_models import tiny_llama

    return tiny_llama(scratch / "tiny", 1, context=16_384)


def folder_bytes(folder: Path) -> int:
    """What the files under `folder` take on the disk."""
    return sum(512 * path.stat().st_blocks for path in folder.rglob("*") if path.is_file())


def _events(answer: Iterable[bytes]) -> Iterator[dict]:  # type: ignore[type-arg]
    for line in answer:
        data = line.removeprefix(b"data:").strip()
        if line.startswith(b"data:") and data != b"[DONE]":
            yield json.loads(data)


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return bytes(answer.read())


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _await_health(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < until:
        try:
            _get(f"{url}/health")
        except (OSError, urllib.error.HTTPError):
            time.sleep(0.1)
        else:
            return
    sys.exit(f"the server did not start; see {log}")
