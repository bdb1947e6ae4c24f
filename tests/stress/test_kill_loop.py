"""The loop of kills, as `make soak` runs it for longer."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS = int(os.environ.get("AGENTCACHE_TEST_STORE_KILLS", "25"))
SEED = os.environ.get("AGENTCACHE_TEST_SEED", "1")
REPOSITORY = Path(__file__).parents[2]


@pytest.mark.timeout(120 + 5 * ROUNDS)
def test_every_turn_that_a_killed_process_acknowledged_is_there_to_the_last_row() -> None:
    command = (
        sys.executable,
        "-m",
        "tests.stress.kill_loop",
        f"--rounds={ROUNDS}",
        f"--seed={SEED}",
    )
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    told = re.match(r"(\d+) kills; (\d+) turns acknowledged, looked for (\d+) times", ran.stdout)
    assert told is not None
    kills, turns, looks = map(int, told.groups())
    assert kills == ROUNDS
    assert looks > turns > 0
