"""The examples of the library, as their users run them: programs of their own, over real HTTP."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

from tests.servers import SECONDS
from tests.tiny_models import tiny_llama

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny", seed=1)


def run(program: str, model: Path, home: Path) -> str:
    command = [sys.executable, str(EXAMPLES / program), "--model", str(model), "--home", str(home)]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def served(program: str, model: Path, home: Path) -> Iterator[str]:
    """The program, from when it answers until it has stopped in order; its address."""
    environment = {"AGENTCACHE_MODEL": str(model), "AGENTCACHE_HOME": str(home)}
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / program), "--port", "0"],
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, **environment},
    )
    assert process.stderr is not None
    lines: list[str] = []
    try:
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"running on (http://\S+)", line):
                yield found[1]
                break
        else:
            raise AssertionError("".join(lines))
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=SECONDS)
        assert "Traceback" not in told, told
    finally:
        process.kill()
        process.communicate()


def test_the_plain_program_remembers_its_first_run(model: Path, tmp_path: Path) -> None:
    first, second = (run("library_sync.py", model, tmp_path) for _ in range(2))
    assert first.startswith("0 messages")
    assert second.startswith("5 messages")
    told = [int(n) for n in re.findall(r"^(\d+) of \d+ tokens were remembered", second, re.M)]
    assert told[0] > 50


def test_agents_at_once_share_what_was_prefilled(model: Path, tmp_path: Path) -> None:
    told = run("library_async.py", model, tmp_path)
    remembered = [int(n) for n in re.findall(r"\((\d+) tokens remembered\)", told)]
    assert len(remembered) == 3
    assert min(remembered) > 50


def test_a_starlette_program_has_agents_and_their_http_api(model: Path, tmp_path: Path) -> None:
    with served("embed_starlette.py", model, tmp_path) as url:
        first, second = (httpx.get(f"{url}/greet/Ann", timeout=SECONDS).json() for _ in range(2))
        assert (first["remembered"], second["remembered"] > 50) == (0, True)
        check_api(f"{url}/llm", "porter")


def test_a_fastapi_program_has_agents_and_their_http_api(model: Path, tmp_path: Path) -> None:
    with served("embed_fastapi.py", model, tmp_path) as url:
        with httpx.stream(
            "POST", f"{url}/agents/ann", params={"text": "Hello"}, timeout=SECONDS
        ) as told:
            assert "".join(told.iter_text())
        assert (
            httpx.post(f"{url}/agents/~ann", params={"text": "Hello"}, timeout=SECONDS).status_code
            == 422
        )
        check_api(f"{url}/llm", "ann")


def check_api(url: str, agent: str) -> None:
    """The mounted application answers OpenAI's client, and knows the program's own agents."""
    assert httpx.get(f"{url}/health/ready", timeout=SECONDS).status_code == 200
    assert httpx.get(f"{url}/no/such/path", timeout=SECONDS).status_code == 404
    names = [one["name"] for one in httpx.get(f"{url}/v1/agents", timeout=SECONDS).json()["data"]]
    assert names == [agent]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=SECONDS) as client:
        (served,) = client.models.list().data
        chunks = client.chat.completions.create(
            model=served.id,
            messages=[{"role": "user", "content": "hi"}],
            max_completion_tokens=8,
            stream=True,
            extra_headers={"X-Agent-ID": "visitor"},
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    told = httpx.get(
        f"{url}/v1/agents/visitor", params={"messages": "true"}, timeout=SECONDS
    ).json()
    assert [one["role"] for one in told["history"]] == ["user", "assistant"]
