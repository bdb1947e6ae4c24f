"""Segment files that something happened to between a kill and the next start."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import frozen

from tests.agents import Agent, passed, prefilled
from tests.homes import Remains
from tests.servers import Server, served


def _flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1000] ^= 4
    file.write_bytes(data)


def _scribble_over_the_header(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[8:40] = b"\xff" * 32
    file.write_bytes(data)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _delete(file: Path) -> None:
    file.unlink()


DAMAGE: dict[str, Callable[[Path], None]] = {
    "flipped": _flip_a_bit,
    "scribbled": _scribble_over_the_header,
    "truncated": _truncate,
    "emptied": _empty,
    "deleted": _delete,
}
BEGINNING = 30  # tokens that all prompts begin with, at most
SWAPPED = ("swapped with another", "swapped with the first")


@frozen
class Damaged:
    """A server that found the first file of every agent's own damaged when it was started."""

    server: Server
    home: Path
    agents: dict[str, Agent]
    files: dict[str, Path]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Damaged]:
    home = tmp_path_factory.mktemp("damaged") / "home"
    names = (*DAMAGE, *SWAPPED)
    agents = {name: Agent.with_notes(f"{n}: {name}") for n, name in enumerate(names)}
    with served(home, model) as server:
        for agent in agents.values():
            agent.ask(server, "What do you know?")
        server.kill()
    remains = Remains.of(home)
    files = {
        name: remains.file(remains.sessions[agent.name].path[0]) for name, agent in agents.items()
    }
    for name, damage in DAMAGE.items():
        damage(files[name])
    one, other = (files[name] for name in SWAPPED)
    aside = one.rename(home / "aside")
    other.rename(one)
    aside.rename(other)
    with served(home, model) as server:
        yield Damaged(server, home, agents, files)


@pytest.mark.parametrize("name", [*DAMAGE, *SWAPPED])
def test_a_damaged_file_is_a_miss_that_is_counted_and_the_answer_is_right(
    damaged: Damaged, name: str
) -> None:
    server, agent = damaged.server, damaged.agents[name]
    right = agent.answers[-1].text  # a home that was empty gave it
    before = passed(server)
    misses = server.metric("misses_total", reason="corrupt")
    segments = server.metric("corrupt_segments_total")
    answer = agent.ask_again(server)
    assert answer.text == right
    assert (answer.cached < BEGINNING, answer.miss) == (True, "corrupt")
    assert prefilled([answer], passed(server) - before) >= answer.prompt - BEGINNING
    assert server.metric("misses_total", reason="corrupt") == misses + 1
    assert server.metric("corrupt_segments_total") == segments + 1


@pytest.mark.parametrize("name", [*DAMAGE, *SWAPPED])
def test_a_damaged_file_is_kept_aside_and_replaced_by_a_sound_one(
    damaged: Damaged, name: str
) -> None:
    server, agent = damaged.server, damaged.agents[name]
    agent.ask(server, "What else?")
    assert agent.ask(server, "And what then?").cached > 600
    aside = list((damaged.home / "quarantine").glob(f"*-{damaged.files[name].name}"))
    assert len(aside) == (name != "deleted")
    assert damaged.files[name].exists()


def test_a_damaged_file_of_one_agent_is_nothing_to_the_others(tmp_path: Path, model: Path) -> None:
    agents = [Agent.with_notes(name) for name in ("Ann", "Bob", "Cleo")]
    home = tmp_path / "home"
    with served(home, model) as server:
        for agent in agents:
            agent.ask(server, "What do you know?")
        server.kill()
    remains = Remains.of(home)
    _empty(remains.file(remains.sessions["Ann"].path[0]))
    with served(home, model) as server:
        ann, bob, cleo = (agent.ask(server, "And what else?") for agent in agents)
    assert ann.miss == "corrupt"
    assert min(bob.cached, cleo.cached) > 600
