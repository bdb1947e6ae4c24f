"""mlx_lm.server after its own restart, with its own prompt cache and with ours in its place.

Both on the same model folder and the same BLAS. Each figure is a median of first-token times over
agents and rounds; ratios are what to compare, seconds are this machine's.
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from attrs import define, field
from driver import (
    MLX_LM,
    THEIR_MODEL,
    Agent,
    Server,
    default_model,
    mlx_lm,
    running,
    tiny_model,
)
from recording import median, parsed, write_results
from rich.console import Console
from rich.table import Table

QUESTION = "Question {n}: name one word from your notes."
DROP_IN = (
    "from functools import partial; from agentcache.prompt_cache import lru_prompt_cache; "
    "from mlx_lm import server; "
    "server.LRUPromptCache = partial(lru_prompt_cache, home={home!r}, codec={codec!r}); "
    "from mlx_lm.server import main;"
)


@define
class Times:
    """First-token times in seconds; of the last turn's prompt, the share that came from a cache."""

    cold: list[float] = field(factory=list)
    hot: list[float] = field(factory=list)
    killed: list[float] = field(factory=list)
    cached: list[float] = field(factory=list)

    def medians(self) -> dict[str, float]:
        """The medians, named as in the table."""
        return {
            "cold": median(self.cold),
            "from RAM": median(self.hot),
            "after kill -9": median(self.killed),
            "cached after kill -9": median(self.cached),
        }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--words", type=int, default=650, help="words of each system prompt")
    parser.add_argument("--agents", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--codec", default="native")
    options = parsed(parser, words=40, agents=1, rounds=1)
    with tempfile.TemporaryDirectory(prefix="agentcache-bench-") as scratch:
        path = Path(scratch)
        folder = tiny_model(path) if options.quick else default_model()
        commands = {
            "without": (mlx_lm(folder), path / "without.log"),
            "with": (_dropped_in(folder, path / "home", options.codec), path / "with.log"),
        }
        measured = _measured(commands, options)
    without, ours = measured["without"].medians(), measured["with"].medians()
    ratios = {
        "after kill -9, with / without": ours["after kill -9"] / without["after kill -9"],
        "after kill -9 / from RAM, with": ours["after kill -9"] / ours["from RAM"],
        "cold, with / without": ours["cold"] / without["cold"],
        "from RAM, with / without": ours["from RAM"] / without["from RAM"],
    }
    rounded = {name: float(f"{value:.3g}") for name, value in ratios.items()}
    found = {"without": without, "with": ours, "ratios": rounded}
    write_results("dropin", found, options.quick)
    _print(without, ours)


def _dropped_in(folder: Path, home: Path, codec: str) -> list[str]:
    """The command of `mlx_lm`, with our prompt cache put in place."""
    code = MLX_LM.format(threads=os.cpu_count()).replace(
        "from mlx_lm.server import main;", DROP_IN.format(home=str(home), codec=codec)
    )
    return [sys.executable, "-c", code, "--model", str(folder), "--port", "{port}"]


def _measured(
    commands: dict[str, tuple[list[str], Path]], options: argparse.Namespace
) -> dict[str, Times]:
    """Both servers run side by side and are asked in turn: a busy machine slows both."""
    times = {name: Times() for name in commands}
    agents = {
        name: [Agent.with_notes(f"agent{n}", n, options.words) for n in range(options.agents)]
        for name in commands
    }
    with _both(commands) as servers:
        for number in range(options.rounds + 1):
            for n in range(options.agents):
                for name, server in servers.items():
                    kept = times[name].hot if number else times[name].cold
                    kept.append(_ask(server, agents[name][n], number)[0])
    for number in range(options.rounds):
        with _both(commands) as servers:
            for n in range(options.agents):
                for name, server in servers.items():
                    first, cached = _ask(server, agents[name][n], 50 + number)
                    times[name].killed.append(first)
                    times[name].cached.append(cached)
    return times


@contextmanager
def _both(commands: dict[str, tuple[list[str], Path]]) -> Iterator[dict[str, Server]]:
    """Every server, killed at the end."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(running(command, log, signal.SIGKILL, THEIR_MODEL))
            for name, (command, log) in commands.items()
        }


def _ask(server: Server, agent: Agent, number: int) -> tuple[float, float]:
    turn = agent.ask(server, QUESTION.format(n=number))
    return turn.first, turn.cached / turn.prompt


def _print(without: dict[str, float], ours: dict[str, float]) -> None:
    table = Table("first token, seconds", "mlx_lm.server", "with agentcache's prompt cache")
    for name in ("cold", "from RAM", "after kill -9"):
        table.add_row(name, f"{without[name]:.3f}", f"{ours[name]:.3f}")
    name = "cached after kill -9"
    table.add_row(name, f"{without[name]:.0%}", f"{ours[name]:.0%}")
    Console().print(table)


if __name__ == "__main__":
    main()
