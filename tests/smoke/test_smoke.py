"""The first minute with agentcache: the default model, served and talked to."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentcache.ports.model_source import ModelFolder
from tests.servers import COMMAND, Server, run, served

MODEL = "smollm2-135m"
CAPITAL = {"role": "user", "content": "What is the capital of France? Answer in one word."}


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, default_model: ModelFolder
) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("smoke") / "home", default_model.path) as server:
        yield server


def _ask(server: Server, **more: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": [CAPITAL], "max_tokens": 8, "temperature": 0, **more}
    return server.client.post("/v1/chat/completions", json=body)


def test_the_server_starts_is_well_and_leaves_nothing_running_when_it_is_stopped(
    tmp_path: Path, default_model: ModelFolder
) -> None:
    with served(tmp_path / "home", default_model.path) as server:
        for probe in ("live", "ready", "startup"):
            health = server.client.get(f"/health/{probe}")
            assert (health.status_code, health.json()["status"]) == (200, "ok")
        assert server.stop() == 0
        with pytest.raises(ProcessLookupError):  # nobody of its process group is left
            os.killpg(server.process.pid, 0)
        with pytest.raises(httpx.ConnectError):
            server.client.get("/health/live")


def test_the_default_model_is_listed_under_its_name(server: Server) -> None:
    models = server.client.get("/v1/models").json()
    assert [model["id"] for model in models["data"]] == [MODEL]
    assert server.client.get(f"/v1/models/{MODEL}").json()["id"] == MODEL


def test_a_completion_is_sensible(server: Server) -> None:
    answer = _ask(server)
    assert answer.status_code == 200
    assert "x-agentcache-tier" in answer.headers
    completion = answer.json()
    (choice,) = completion["choices"]
    assert "Paris" in choice["message"]["content"]
    assert choice["message"]["role"] == "assistant"
    usage = completion["usage"]
    assert 0 < usage["completion_tokens"] <= 8
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_stream_is_role_text_finish_usage_done(server: Server) -> None:
    answer = _ask(server, stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *frames, done = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert done == "[DONE]"
    first, *pieces, last, counted = map(json.loads, frames)
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert "Paris" in "".join(piece["choices"][0]["delta"]["content"] for piece in pieces)
    assert all(one["choices"][0]["finish_reason"] is None for one in (first, *pieces))
    assert last["choices"][0]["finish_reason"] in ("stop", "length")
    assert counted["choices"] == []
    usage = counted["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]
    assert len({frame["id"] for frame in (first, *pieces, last, counted)}) == 1


@pytest.mark.parametrize(
    ("wrong", "status", "kind", "param"),
    [
        ({"model": "gpt-5"}, 404, "not_found_error", None),
        ({"temperature": -1}, 400, "invalid_request_error", "temperature"),
        ({"messages": "hello"}, 400, "invalid_request_error", "messages"),
    ],
)
def test_an_error_says_what_is_wrong_in_the_shape_that_clients_read(
    server: Server, wrong: dict[str, object], status: int, kind: str, param: str | None
) -> None:
    answer = _ask(server, **wrong)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (status, kind, param)
    assert error["message"]


def test_a_chat_remembers_the_chat_before(tmp_path: Path, default_model: ModelFolder) -> None:
    settings = ("--home", tmp_path / "home", "--model", default_model.path)
    chat = ("chat", "ann", *settings, "--temperature", "0", "--context", "160")
    first = run(*chat, said="What is the capital of France? Answer in one word.\n")
    second = run(*chat, said="And of Italy?\n")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "Paris" in first.stdout
    (_, before), (remembered, prompt) = _counted(first.stderr), _counted(second.stderr)
    assert before <= remembered < prompt


def _counted(told: str) -> tuple[int, int]:
    found = re.search(r"(\d+) of (\d+) tokens remembered", told)
    assert found, told
    return int(found[1]), int(found[2])


def test_a_model_that_is_there_is_not_fetched_again(default_model_home: Path) -> None:
    weights = default_model_home / "models" / MODEL / "model.safetensors"
    made = weights.stat()
    told = run("models", "pull", MODEL, "--home", default_model_home)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith(f"{MODEL} is ready in ")
    assert (weights.stat().st_ino, weights.stat().st_mtime_ns) == (made.st_ino, made.st_mtime_ns)


def test_version_is_that_of_the_package() -> None:
    told = run("--version")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout == f"agentcache, version {version('agentcache-mlx')}\n"


@pytest.mark.parametrize("command", ["", "serve", "chat", "models"])
def test_help_is_there_for_every_command(command: str) -> None:
    told = run(*command.split(), "--help")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith(f"Usage: agentcache {command}".rstrip())


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_what_needs_no_model_does_not_wait_for_mlx_to_load(option: str) -> None:
    command = [sys.executable, "-X", "importtime", str(COMMAND), option]
    told = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    imported = {line.rsplit("|")[-1].strip().split(".")[0] for line in told.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"mlx", "mlx_lm", "transformers", "numpy", "starlette"}
