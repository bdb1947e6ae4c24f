"""The example of a generation loop of one's own, as its users run it."""

import re
import subprocess
import sys
from pathlib import Path

from tests.servers import SECONDS
from tests.tiny_models import tiny_llama

PROGRAM = Path(__file__).parent.parent.parent / "examples" / "own_generation_loop.py"
TOLD = re.compile(r"(\d+) of (\d+) prompt tokens restored, (\d+) new rows kept$")


def told(*arguments: object) -> tuple[str, tuple[int, ...]]:
    """The answer, and the three numbers of its last line."""
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    answer, _, last = done.stdout.rstrip("\n").rpartition("\n")
    found = TOLD.search(last)
    assert found, done.stdout
    return answer, tuple(map(int, found.groups()))


def test_the_second_run_restores_what_the_first_one_kept(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model", seed=1)
    first, (restored, prompt, kept) = told(model, tmp_path / "home", "What is in the harbour?")
    assert (restored, kept > prompt) == (0, True)
    second, numbers = told(model, tmp_path / "home", "What is in the harbour?")
    assert (second, numbers) == (first, (prompt - 1, prompt, 0))
