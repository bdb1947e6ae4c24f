"""The example adapter in examples/: a package of its own, in a process of its own."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.plugged import write_entry_points
from tests.servers import SECONDS
from tests.tiny_models import tiny_llama

PACKAGE = Path(__file__).parent.parent.parent / "examples" / "adapters" / "agentcache-onefile"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One in which the package can be imported, and is found by its entry points."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    write_entry_points(tmp_path / "site", project["name"], project["entry-points"])
    paths = (str(PACKAGE / "src"), str(tmp_path / "site"))
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}


def test_it_passes_the_contract_of_its_port(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(PACKAGE)],
        env=environment,
        cwd=PACKAGE,
        capture_output=True,
        text=True,
        timeout=3 * SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


TURNS = """
import sys, agentcache
for again in range(2):
    with agentcache.open(sys.argv[1], sys.argv[2], plugins="segments=onefile") as cache:
        said = cache.agent("ada").say("What is in the harbour today?", max_tokens=4)
        print(said.cache.cached_tokens > 0, said.cache.tier.value)
"""


def test_agents_remember_in_it(environment: dict[str, str], tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = subprocess.run(
        [sys.executable, "-c", TURNS, tiny_llama(tmp_path / "model", seed=1), home],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.stdout.split("\n") == ["False none", "True cold", ""], done.stderr
    assert (home / "segments.sqlite3").stat().st_size > 0
    assert not (home / "segments").exists()
