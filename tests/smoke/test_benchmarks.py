"""Every benchmark's quick run, so that none of them rots; what they measure means nothing here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BENCHMARKS = ROOT / "benchmarks"
# Those that need no real weights and no server of others; `make bench-quick` runs all of them.
CHEAP = (
    *("core", "overhead", "idle_streams", "compaction", "writing", "memory", "restore", "stalls"),
    "fidelity",
)


def _run(program: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / f"{program}.py"), *map(str, options)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def _results(name: str) -> dict[str, object]:
    found = json.loads((BENCHMARKS / "results" / "tmp" / f"{name}.json").read_text())
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("name", CHEAP)
def test_a_quick_run_says_what_it_found_and_what_it_was_made_with(name: str) -> None:
    (BENCHMARKS / "results" / "tmp" / f"{name}.json").unlink(missing_ok=True)
    done = _run(name, "--quick")
    assert done.returncode == 0, done.stderr
    results = _results(name)
    made = results.pop("made")
    assert isinstance(made, dict)
    assert made["command"] == f"python benchmarks/{name}.py --quick"
    assert {"machine", "versions", "load average", "commit"} <= made.keys()
    assert results.keys() - {"bars"}


def test_what_the_others_import_is_there() -> None:
    code = "import runpy, sys; [runpy.run_path(path) for path in sys.argv[1:]]"
    command = [sys.executable, "-c", code, *map(str, sorted(BENCHMARKS.glob("*.py")))]
    env = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr


def test_the_report_has_a_row_for_each_bar_and_names_those_that_were_missed(
    tmp_path: Path,
) -> None:
    bars = [
        {"what": "fork, median ms", "found": 2.5, "bar": "≤ 10", "met": True},
        {"what": "event loop stall", "found": 80.0, "bar": "≤ 50", "met": False},
    ]
    page = _report(tmp_path, {"turns": 3, "stall, ms": {"p99": 80.0}, "bars": bars})
    assert "| fork, median ms | 2.5 | ≤ 10 | met | `python benchmarks/stalls.py` |" in page
    assert "| event loop stall | 80 | ≤ 50 | **missed** |" in page
    assert "- event loop stall: " in page
    assert "Not measured: Coming back" in page
    assert "busy" not in page


def test_the_report_warns_of_a_machine_that_was_busy(tmp_path: Path) -> None:
    assert "busy" in _report(tmp_path, {"turns": 3}, load=1.51)


def _report(folder: Path, results: dict[str, object], load: float = 0.1) -> str:
    made = {
        "at": "2026-01-01T00:00:00+00:00",
        "command": "python benchmarks/stalls.py",
        "seconds": 60,
        "commit": "abc1234",
        "load average": {"before": load, "after": 2.0},
        "machine": {"system": "Linux", "processor": "a", "cores": 2, "memory, GB": 8.0},
        "versions": {"python": "3.11"},
    }
    (folder / "results").mkdir()
    (folder / "results" / "stalls.json").write_text(json.dumps({**results, "made": made}))
    page = folder / "benchmarks.md"
    done = _run("report", "--results", folder / "results", "--page", page)
    assert done.returncode == 0, done.stderr
    return page.read_text()
