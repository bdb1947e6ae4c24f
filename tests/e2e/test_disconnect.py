"""Clients that go away while they are being answered."""

from pathlib import Path

from tests.agents import Agent, passed
from tests.servers import served, until


def test_a_client_that_goes_away_frees_its_place_and_its_retry_goes_on_from_what_was_computed(
    tmp_path: Path, model: Path
) -> None:
    agent = Agent.with_notes("Impatient")
    with served(tmp_path / "home", model) as server:
        with agent.asking(server, "Tell me everything, at length.", 6000) as stream:
            stream.first(pieces=5)
            until(lambda: server.metric("running") == 1)
        until(lambda: server.metric("running") == 0)
        assert server.metric("turns_total", finish="cancelled") == 1
        so_far = passed(server)
        with agent.asking(server, "Tell me everything, at length.", 8) as stream:
            prompt_and_answer = list(stream)
        assert prompt_and_answer
        retry = agent.answers[-1]
        assert passed(server) - so_far <= 2 + retry.completion
        assert (retry.prompt - retry.cached, retry.tier) == (1, "hot")


def test_a_retry_goes_on_from_what_was_computed_even_after_a_kill(
    tmp_path: Path, model: Path
) -> None:
    home, agent = tmp_path / "home", Agent.with_notes("Persistent")
    with served(home, model) as server:
        with agent.asking(server, "Tell me everything, at length.", 6000) as stream:
            stream.first(pieces=5)
        until(lambda: server.metric("running") == 0)
        until(lambda: server.metric("cold_bytes") > 0 == server.metric("write_queue_bytes"))
        server.kill()
    with served(home, model) as server:
        retry = agent.ask(server, "Tell me everything, at length.")
        assert retry.prompt - retry.cached <= 2
        assert passed(server) <= 2 + retry.completion
