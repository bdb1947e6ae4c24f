"""mlx_lm.server itself, with our prompt cache in the place of its own, killed and started again."""

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.servers import SECONDS, until
from tests.tiny_models import tiny_llama

PROGRAM = Path(__file__).parent.parent.parent / "examples" / "mlx_lm_server_with_memory.py"
SYSTEM = {"role": "system", "content": "You keep the ledger of a harbour. " * 6}
QUESTION = {"role": "user", "content": "Which ship came first?"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), seed=1)


@contextmanager
def served(folder: Path, home: Path) -> Iterator[httpx.Client]:
    """The example program as a process; killed at the end, as a crash would."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, str(PROGRAM), "--model", str(folder), "--port", str(port)]
    environment = os.environ | {"AGENTCACHE_HOME": str(home)}
    log = home.with_suffix(".log")
    with (
        log.open("ab") as told,
        subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=told, stderr=told
        ) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=url, timeout=SECONDS, trust_env=False) as client:
                until(lambda: process.poll() is not None or is_healthy(client))
                assert process.poll() is None, log.read_text()
                yield client
        finally:
            process.kill()


def is_healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").is_success
    except httpx.TransportError:
        return False


def ask(client: httpx.Client, *messages: dict[str, str]) -> tuple[str, int, int]:
    """The answer; tokens of the prompt, and those that came from the cache, as mlx-lm counts."""
    body = {"messages": messages, "max_tokens": 8, "temperature": 0, "model": "default_model"}
    told = client.post("/v1/chat/completions", json=body).raise_for_status().json()
    usage = told["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return told["choices"][0]["message"]["content"], usage["prompt_tokens"], cached


def tokens_on_disk(home: Path) -> int:
    """How many tokens' rows a crash would leave: those in a copy of the catalogue as it is."""
    with tempfile.TemporaryDirectory() as folder:
        for path in home.glob("catalogue.sqlite3*"):
            shutil.copy(path, folder)
        try:
            with closing(sqlite3.connect(Path(folder) / "catalogue.sqlite3")) as db:
                found = db.execute("SELECT coalesce(sum(length(ids)) / 4, 0) FROM segment")
                return int(found.fetchone()[0])
        except sqlite3.DatabaseError:  # copied while it was written
            return 0


def test_a_conversation_is_continued_from_disk_after_kill_9(folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with served(folder, home) as client:
        answer, prompt, cached = ask(client, SYSTEM, QUESTION)
        assert cached == 0
        until(lambda: tokens_on_disk(home) >= prompt)
    with served(folder, home) as client:
        again = ask(client, SYSTEM, QUESTION)
        assert again == (answer, prompt, prompt - 1)
        said = {"role": "assistant", "content": answer}
        _, longer, cached = ask(client, SYSTEM, QUESTION, said, {"role": "user", "content": "Why?"})
        assert prompt <= cached < longer


def test_another_conversation_shares_the_system_prompt_after_a_restart(
    folder: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    with served(folder, home) as client:
        _, prompt, _ = ask(client, SYSTEM, QUESTION)
        until(lambda: tokens_on_disk(home) >= prompt)
    with served(folder, home) as client:
        _, _, cached = ask(client, SYSTEM, {"role": "user", "content": "And the last one?"})
        assert len(SYSTEM["content"]) <= cached
