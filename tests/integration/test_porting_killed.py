"""An import that is killed: by the system, at any moment, as it is run by its users."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

import agentcache
from agentcache.adapters.disk.catalogue import SqliteSessionStore
from agentcache.adapters.disk.home import Home
from agentcache.adapters.disk.segments import DiskSegmentStore
from tests.servers import SECONDS
from tests.tiny_models import tiny_llama

COMMAND = [sys.executable, "-c", "from agentcache.cli import main; main()", "agents"]
SHORT: dict[str, Any] = {"max_tokens": 4, "temperature": 0.0}
TURNS = 6


@frozen
class Carried:
    """An exported agent, and what it says next where it is from."""

    model: Path
    file: Path
    says: str


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Carried:
    folder = tmp_path_factory.mktemp("carried")
    model = tiny_llama(folder / "tiny", seed=1)
    with opened(model, folder / "home") as cache:
        agent = cache.agent("ada", system="You are brief. " * 10)
        for number in range(TURNS):
            agent.say(f"turn {number}", **SHORT)
        cache.service.export("default", "ada", folder / "ada.agent")
    with opened(model, folder / "home") as cache:
        return Carried(model, folder / "ada.agent", cache.agent("ada").say("go on", **SHORT).text)


def opened(model: Path, home: Path) -> agentcache.AgentCache:
    return agentcache.open(model=str(model), home=home, memory_budget="64MB", codec="native")


def importing(carried: Carried, home: Path) -> "subprocess.Popen[str]":
    words = ["import", str(carried.file), "--home", str(home), "--model", str(carried.model)]
    return subprocess.Popen(
        [*COMMAND, *words, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def files(home: Path) -> int:
    return sum(1 for _ in (home / "segments").rglob("*.safetensors"))


def check_home(home: Path) -> list[str]:
    """Whether all that the home knows is there, and nothing else; the agents that it has."""
    with Home.open(home) as mine:
        segments = DiskSegmentStore.open(mine.segments, mine.quarantine)
        sessions = SqliteSessionStore.open(mine.catalogue)
        known = sessions.load()
        for one in known.segments:
            segments.read(one)
        segments.sweep(one.key for one in known.segments)
        sessions.close()
        segments.close()
    assert files(home) == len(known.segments)
    return [one.name for one in known.sessions]


@pytest.mark.parametrize("written", [1, TURNS // 2, TURNS])
def test_an_import_killed_after_some_segments_is_all_or_nothing_and_can_be_made_again(
    carried: Carried, tmp_path: Path, written: int
) -> None:
    home = tmp_path / "home"
    process = importing(carried, home)
    until = time.monotonic() + SECONDS
    while files(home) < written and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.0005)  # not to take the processor from whom we watch
    process.kill()
    process.communicate()
    assert check_home(home) in ([], ["ada"])
    with opened(carried.model, home) as cache:
        cache.service.take_in("default", carried.file, None, replace=True)
        said = cache.agent("ada").say("go on", **SHORT)
    assert said.text == carried.says
    assert said.usage.prompt_tokens - said.cache.cached_tokens < 40
    assert check_home(home) == ["ada"]
