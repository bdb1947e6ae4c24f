"""Servers of models whose layers are not all alike, killed while they remember."""

from pathlib import Path

import pytest

from tests.agents import Agent, recomputed
from tests.homes import Remains
from tests.servers import served
from tests.tiny_shapes import SHAPES

MOST_AGAIN = 10  # tokens: of the last answer, some may not have become text; a lost turn is 40
QUESTIONS = ("Who are you?", "And what else?", "What is left?")
KINDS = {name: SHAPES[name] for name in ("gemma3_text", "gpt_oss", "qwen3_next")}


@pytest.mark.parametrize("name", KINDS)
def test_a_killed_server_remembers_whatever_its_model_is_made_of(tmp_path: Path, name: str) -> None:
    model, home = KINDS[name].made(tmp_path / name), tmp_path / "home"
    agents = [Agent.with_notes(one) for one in ("ann", "bob")]
    with served(tmp_path / "undisturbed", model) as server:
        twins = [agent.twin() for agent in agents]
        for twin in twins:
            for question in QUESTIONS:
                twin.ask(server, question)
    with served(home, model) as server:
        for agent in agents:
            for question in QUESTIONS[:-1]:
                agent.ask(server, question)
        server.kill()
    with served(home, model) as server:
        for agent, twin in zip(agents, twins, strict=True):
            assert recomputed(server, agent, QUESTIONS[-1]) <= MOST_AGAIN
            assert agent.answers[-1].tier == "cold"
            assert agent.messages == twin.messages
        assert server.stop() == 0
    Remains.of(home).check()
