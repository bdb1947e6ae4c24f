"""Whose home it is: one server a home, any number of homes, and commands that ask the owner."""

from pathlib import Path

from tests.agents import Agent, share_served
from tests.homes import Remains
from tests.servers import run, served


def test_a_second_server_on_a_home_is_refused_and_the_first_goes_on(
    tmp_path: Path, model: Path
) -> None:
    home, agent = tmp_path / "home", Agent.with_notes("Undisturbed")
    with served(home, model) as server:
        agent.ask(server, "Who are you?")
        second = run("serve", "--home", home, "--model", model, "--port", "0")
        assert second.returncode == 1
        (told,) = second.stderr.splitlines()
        assert str(home) in told
        assert f"process {server.process.pid} at {server.url}" in told
        assert share_served(server, agent) >= 0.98
        server.kill()
    with served(home, model) as server:  # a killed owner owns nothing
        assert share_served(server, agent) >= 0.98


def test_servers_on_two_homes_know_nothing_of_each_other(tmp_path: Path, model: Path) -> None:
    homes = tmp_path / "one", tmp_path / "other"
    agent, namesake = Agent.with_notes("Namesake"), Agent.with_notes("Namesake")
    with served(homes[0], model) as one, served(homes[1], model) as other:
        answer = agent.ask(one, "Who are you?")
        same = namesake.ask(other, "Who are you?")
        assert (same.cached, same.text) == (0, answer.text)
        other.kill()
        assert share_served(one, agent) >= 0.98
        assert one.stop() == 0
    first, second = (set(Remains.of(home).segments) for home in homes)
    assert first
    assert second
    assert not first & second  # every home has a secret that its keys are made with


def test_a_chat_is_answered_by_the_server_and_goes_on_after_a_kill(
    tmp_path: Path, model: Path
) -> None:
    home = tmp_path / "home"
    chat = ("chat", "Ann of Ål", "--home", home, "--temperature", "0")
    with served(home, model, "--context", "700") as server:
        first = run(*chat, said="Hello, I am the one who asks.\n")
        assert first.returncode == 0, first.stderr
        assert server.metric("prompt_tokens_total") == _tokens(first.stderr)[1]
        server.kill()
    with served(home, model, "--context", "900") as server:
        second = run(*chat, said="Who am I?\n")
        assert second.returncode == 0, second.stderr
        remembered, prompt = _tokens(second.stderr)
        assert server.metric("prompt_tokens_total") == prompt
        assert server.metric("cached_tokens_total", tier="cold") == remembered
        assert prompt - remembered < 60


def _tokens(told: str) -> tuple[int, int]:
    """Tokens remembered and tokens in all, from "17 of 40 tokens remembered"."""
    remembered, _, prompt, *_ = told.strip().splitlines()[-1].split()
    return int(remembered), int(prompt)
