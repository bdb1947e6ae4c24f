"""Another model in a server that runs, and back."""

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.agents import Agent, share_served
from tests.servers import SECONDS, Server, served, until
from tests.tiny_models import tiny_llama

SERVED = 0.98  # of the tokens of the turn before
BIG = {"layers": 4, "hidden": 768, "intermediate": 3072, "heads": 8, "kv_heads": 8}


@pytest.fixture(scope="module")
def big_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two of some 150 MB in float32 each, so that one more or less of them shows."""
    folder = tmp_path_factory.mktemp("big")
    return tuple(tiny_llama(folder / f"big{n}", n, **BIG) for n in (1, 2))  # type: ignore


def swap(server: Server, model: Path | str, within: float = SECONDS) -> httpx.Response:
    return server.client.post("/v1/admin/model", json={"model": str(model), "within": within})


def served_name(server: Server) -> str:
    return str(server.client.get("/v1/models").json()["data"][0]["id"])


def resident(server: Server) -> int:
    """Bytes of memory that the process takes, without the pages of files."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (line,) = (one for one in status.splitlines() if one.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def test_agents_go_on_from_their_rows_when_their_model_is_back(
    tmp_path: Path, model: Path, other_model: Path, undisturbed: Server
) -> None:
    agent = Agent.with_notes("Swapped")
    with served(tmp_path / "home", model) as server:
        agent.ask(server, "Who are you?")
        twin = agent.twin()
        swapped = swap(server, other_model)
        assert swapped.status_code == 200, swapped.text
        assert swapped.json()["model"] == other_model.name
        elsewhere = twin.ask(server, "And now?")
        assert (elsewhere.cached, elsewhere.miss) == (0, "model_changed")
        assert swap(server, model).is_success
        assert share_served(server, agent) >= SERVED
        assert (agent.answers[-1].tier, agent.answers[-1].miss) == ("warm", None)
        assert server.stop() == 0
    questions = [one["content"] for one in agent.messages if one["role"] == "user"]
    other = Agent(agent.name, agent.messages[:1])
    assert [other.ask(undisturbed, one).text for one in questions] == [
        one.text for one in agent.answers
    ]


def test_a_model_of_another_shape_may_come_between_and_the_server_may_be_killed_there(
    tmp_path: Path, model: Path
) -> None:
    home, agent = tmp_path / "home", Agent.with_notes("Traveller")
    shorter = tiny_llama(tmp_path / "shorter", 3, layers=2, hidden=32, heads=2, kv_heads=1)
    with served(home, model) as server:
        agent.ask(server, "Who are you?")
        assert swap(server, shorter).is_success
        agent.twin().ask(server, "And now?")
        server.kill()
    with served(home, model) as server:
        assert share_served(server, agent) >= SERVED


def test_streams_that_run_are_finished_and_who_comes_meanwhile_is_told_when_to_come_back(
    tmp_path: Path, model: Path, other_model: Path
) -> None:
    agent, answers = Agent.with_notes("Impatient"), []
    with served(tmp_path / "home", model) as server:
        with agent.asking(server, "Tell me everything, at length.", 1000) as stream:
            stream.first(pieces=2)
            swapping = threading.Thread(target=lambda: answers.append(swap(server, other_model)))
            swapping.start()
            until(lambda: not server.client.get("/health/ready").is_success)
            assert server.client.get("/health/live").is_success
            refused = _asked(server)
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert "swapping" in refused.json()["error"]["message"]
            for _ in stream:
                pass
        swapping.join(SECONDS)
        assert agent.answers[-1].completion == 1000
        assert answers[0].json()["model"] == other_model.name
        assert _asked(server).is_success


def test_streams_that_run_too_long_are_told_so_and_their_retry_goes_on_from_what_is_kept(
    tmp_path: Path, model: Path, other_model: Path
) -> None:
    question, agent = "Tell me everything, at length.", Agent.with_notes("Impatient")
    with served(tmp_path / "home", model) as server:
        with agent.asking(server, question, 6000) as stream:
            stream.first(pieces=2)
            assert swap(server, other_model, within=0).is_success
            with pytest.raises(AssertionError, match="unavailable"):
                list(stream)
        assert swap(server, model).is_success
        retry = agent.ask(server, question)
        assert retry.prompt - retry.cached <= 1


def test_a_swap_that_fails_leaves_the_old_model_serving(tmp_path: Path, model: Path) -> None:
    agent = Agent.with_notes("Faithful")
    broken = tiny_llama(tmp_path / "broken", 4)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4000])
    with served(tmp_path / "home", model) as server:
        agent.ask(server, "Who are you?")
        for ref in (tmp_path / "nowhere", broken):
            failed = swap(server, ref)
            assert failed.status_code == 404, failed.text
            assert failed.json()["error"]["code"] == "model_not_found"
            assert server.client.get("/health/ready").is_success
            assert share_served(server, agent) >= SERVED
        assert served_name(server) == model.name


def test_the_memory_of_the_old_model_is_given_back(
    tmp_path: Path, big_models: tuple[Path, Path]
) -> None:
    first, second = big_models
    nbytes = (first / "model.safetensors").stat().st_size
    # Little enough that memory which is made ready for agents does not hide a model.
    with served(tmp_path / "home", first, "--memory-budget", "64MB") as server:
        _asked(server)
        before, most = resident(server), 0
        assert before > nbytes
        for model in (second, first):
            assert swap(server, model).is_success
            _asked(server)
            most = max(most, resident(server))
        assert most - before < nbytes / 2
        peak = _most_resident(server)
        assert peak - before < nbytes  # never both of them at once


def _most_resident(server: Server) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (line,) = (one for one in status.splitlines() if one.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _asked(server: Server, **fields: Any) -> httpx.Response:
    messages = [{"role": "user", "content": "Hi"}]
    name = served_name_or(server, "tiny")
    body = {"model": name, "messages": messages, "max_tokens": 2, **fields}
    return server.client.post("/v1/chat/completions", json=body)


def served_name_or(server: Server, name: str) -> str:
    response = server.client.get("/v1/models")
    return str(response.json()["data"][0]["id"]) if response.is_success else name
