"""A server that ends, in whatever way, and is started again on the same home."""

from pathlib import Path

import httpx

from tests.agents import Agent, passed, prefilled, share_served
from tests.homes import Remains
from tests.servers import Server, served

SERVED = 0.98  # of the tokens of the turn before


def _replayed(agent: Agent, undisturbed: Server) -> list[str]:
    """What a server that was never stopped answers to the questions that `agent` asked."""
    questions = [one["content"] for one in agent.messages if one["role"] == "user"]
    other = Agent(agent.name, agent.messages[:1])
    return [other.ask(undisturbed, question).text for question in questions]


def test_agents_go_on_from_their_rows_after_the_server_was_stopped(
    tmp_path: Path, model: Path, undisturbed: Server
) -> None:
    home, agent = tmp_path / "home", Agent.with_notes("Stopped")
    with served(home, model) as server:
        agent.ask(server, "Who are you?")
        agent.ask(server, "What do you know?")
        assert server.stop() == 0
    Remains.of(home).check()
    with served(home, model) as server:
        assert share_served(server, agent) >= SERVED
        assert (agent.answers[-1].tier, agent.answers[-1].miss) == ("cold", None)
        assert share_served(server, agent, "And then?") >= SERVED
    assert [one.text for one in agent.answers] == _replayed(agent, undisturbed)


def test_a_server_that_is_killed_right_after_an_answer_has_kept_it(
    tmp_path: Path, model: Path, undisturbed: Server
) -> None:
    home, agent = tmp_path / "home", Agent.with_notes("Killed")
    for _ in range(2):
        with served(home, model) as server:
            agent.ask(server, "What is new?")
            server.kill()
    with served(home, model) as server:
        assert share_served(server, agent) >= SERVED
        assert server.stop() == 0
    Remains.of(home).check()
    assert [one.text for one in agent.answers] == _replayed(agent, undisturbed)


def test_a_server_that_is_killed_in_the_middle_of_an_answer_has_kept_the_turns_before(
    tmp_path: Path, model: Path, undisturbed: Server
) -> None:
    home, agent = tmp_path / "home", Agent.with_notes("Interrupted")
    with served(home, model) as server:
        agent.ask(server, "Who are you?")
        agent.ask(server, "What do you know?")
        with agent.asking(server, "Tell me everything, at length.", 6000) as stream:
            stream.first(pieces=20)
            server.kill()
    found = Remains.of(home).sessions[agent.name]
    assert len(found.said) <= agent.answers[-1].tokens
    with served(home, model) as server:
        assert share_served(server, agent) >= SERVED
        assert server.stop() == 0
    Remains.of(home).check()
    assert [one.text for one in agent.answers] == _replayed(agent, undisturbed)


def test_other_weights_under_the_same_name_use_nothing_of_what_the_first_ones_computed(
    tmp_path: Path, model: Path, other_model: Path
) -> None:
    home, agent = tmp_path / "home", Agent.with_notes("Swapped")
    with served(home, model) as server:
        agent.ask(server, "Who are you?")
        assert server.stop() == 0
    fresh = agent.twin()
    with served(home, other_model) as server:
        answer = agent.ask(server, "And now?")
        assert (answer.cached, answer.miss) == (0, "model_changed")
        assert prefilled([answer], passed(server)) == answer.prompt
        assert server.metric("misses_total", reason="model_changed") == 1
    with served(tmp_path / "fresh", other_model) as server:
        assert fresh.ask(server, "And now?").text == answer.text
    agent.messages, agent.answers = agent.messages[:3], agent.answers[:1]
    with served(home, model) as server:  # the first model finds its own again
        assert share_served(server, agent) >= SERVED


def test_a_thread_that_stores_no_response_is_known_by_its_cache_key_after_a_kill(
    tmp_path: Path, model: Path
) -> None:
    home, said = tmp_path / "home", [{"role": "user", "content": "Look around here. " * 20}]
    asked = {"store": False, "prompt_cache_key": "thread", "max_output_tokens": 12}
    with served(home, model) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        asked["model"] = client.get("/v1/models").json()["data"][0]["id"]
        first = client.post("/v1/responses", json=asked | {"input": said}).raise_for_status().json()
        server.kill()
    with served(home, model) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.get(f"/v1/responses/{first['id']}").status_code == 404
        more = [*said, *first["output"], {"role": "user", "content": "And now?"}]
        after = client.post("/v1/responses", json=asked | {"input": more}).raise_for_status()
    cached = after.json()["usage"]["input_tokens_details"]["cached_tokens"]
    assert cached >= SERVED * first["usage"]["total_tokens"]
    assert after.headers["x-agentcache-tier"] == "cold"


def test_a_stored_response_says_after_a_kill_all_that_it_said(tmp_path: Path, model: Path) -> None:
    wishes = {"temperature": 0.5, "metadata": {"thread": "7"}, "instructions": "Be brief."}
    asked = {"input": "Look around here. " * 20, "max_output_tokens": 5, **wishes}
    home = tmp_path / "home"
    with served(home, model) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        asked["model"] = client.get("/v1/models").json()["data"][0]["id"]
        made = client.post("/v1/responses", json=asked).raise_for_status().json()
        server.kill()
    with served(home, model) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        found = client.get(f"/v1/responses/{made['id']}").raise_for_status().json()
    del made["completed_at"], found["completed_at"]  # when it was written, and when it was told
    assert found == made
    assert {name: found[name] for name in wishes} == wishes
    assert (found["status"], found["usage"]["output_tokens"]) == ("incomplete", 5)
