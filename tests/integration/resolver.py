"""A process that resolves a model and stops at a stage until it is told to go on.

Run as `python resolver.py HOME REF STAGE`; says `at STAGE` and reads a line when it first has some
bytes of STAGE behind it, says the digest at the end.
"""

import sys
from pathlib import Path

from agentcache.adapters.models import LocalModelSource
from agentcache.ports.model_source import Stage


class Halting:
    """Stops once at `stage`."""

    def __init__(self, stage: str) -> None:
        self._stage = stage

    def __call__(self, done: int, _total: int | None, stage: Stage, /) -> None:
        if stage == self._stage and (done or stage == "waiting"):
            self._stage = ""
            say(f"at {stage}")
            sys.stdin.readline()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    home, ref, stage = sys.argv[1:]
    say(LocalModelSource(Path(home)).resolve(ref, Halting(stage)).digest.hex())
