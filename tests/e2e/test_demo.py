"""The demonstration: it must succeed, and must notice when nothing was remembered."""

import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"
MOMENT = ["after", "kill", "-9"]
AGENTS = ("historian", "botanist", "engineer")


def _demonstrated(models: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, DEMO, "--models", models, "--notes", "5", *options],
        capture_output=True,
        encoding="utf-8",
        timeout=280,
        check=False,
    )


def _passed_after_the_kill(shown: str) -> list[tuple[int, int]]:
    """Prompt tokens and tokens passed to the model, from the rows of the table."""
    rows = [line.split() for line in shown.splitlines() if line.split()[:3] == MOMENT]
    return [(int(row[3]), int(row[4])) for row in rows]


def test_the_demonstration_shows_that_every_agent_comes_back(default_model_home: Path) -> None:
    shown = _demonstrated(default_model_home)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert all(agent in shown.stdout for agent in AGENTS)
    figures = _passed_after_the_kill(shown.stdout)
    assert len(figures) == len(AGENTS)
    assert all(passed < prompt / 4 for prompt, passed in figures)
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())


def test_the_demonstration_fails_when_the_memory_is_deleted_in_between(
    default_model_home: Path,
) -> None:
    shown = _demonstrated(default_model_home, "--between", "rm -rf {home}/segments")
    assert shown.returncode == 1, shown.stdout + shown.stderr
    assert f"instead of restored: {', '.join(AGENTS)}" in shown.stdout
    figures = _passed_after_the_kill(shown.stdout)
    assert len(figures) == len(AGENTS)
    assert all(passed > prompt / 2 for prompt, passed in figures)
