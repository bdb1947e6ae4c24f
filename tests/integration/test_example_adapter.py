"""The example adapter in examples/: a package of its own, in a process of its own."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.plugged import write_entry_points
from tests.servers import SECONDS

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


def test_it_is_chosen_by_its_name(environment: dict[str, str], tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from agentcache.container import Container; "
        "from agentcache.settings import Settings; container = Container(); "
        "container.settings.override(Settings(home=Path(sys.argv[1]), adapters='segments=onefile'))"
        "\nwith container.home(): print(type(container.segments()).__name__)"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "home")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert said.stdout == "OneFileStore\n"
    assert (tmp_path / "home" / "segments.sqlite3").exists()
