"""What it costs to bring an agent back: first-token times cold, hot, from RAM, and after kill -9.

agentcache and mlx_lm.server one after the other, on the same model folder, with the same BLAS, at
several lengths. Each figure is a median over agents and rounds; ratios are what to compare, seconds
are this machine's.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from attrs import asdict, define, field
from driver import (
    THEIR_MODEL,
    Agent,
    Server,
    agentcache,
    default_model,
    mlx_lm,
    running,
    tiny_model,
)
from recording import bar, median, parsed, write_results

QUESTION = "Question {n}: name one word from your notes."
OFTEN = 2300  # words of the length that the bars are about
# After kill -9 ÷ mlx_lm.server's RAM, cold ÷ its cold: it has a GPU elsewhere.
THEIRS = (0.6, 0.25) if sys.platform == "linux" else (1.0, 1.0)


@define
class Times:
    """First-token times in seconds, by where the agent was when it was asked."""

    cold: list[float] = field(factory=list)
    hot: list[float] = field(factory=list)
    warm: list[float] = field(factory=list)
    killed: list[float] = field(factory=list)
    boot: list[float] = field(factory=list)
    served: list[float] = field(factory=list)  # share of the last turn's tokens not passed again

    def medians(self) -> dict[str, float]:
        """The median of each that was measured."""
        return {name: median(values) for name, values in asdict(self).items() if values}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--words", type=int, nargs="+", default=[256, 1024, OFTEN, 4000])
    parser.add_argument("--agents", type=int, default=2)
    parser.add_argument("--their-agents", type=int, default=1, help="of mlx_lm.server; 0: none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--codec", default="native", help="native: as mlx_lm.server keeps its rows")
    options = parsed(parser, words=[40], agents=1, rounds=1)
    lengths: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="agentcache-bench-") as scratch:
        path = Path(scratch)
        folder = tiny_model(path) if options.quick else default_model()
        for words in options.words:
            ours = _ours(folder, path / str(words), words, options)
            theirs = _theirs(folder, path, words, options) if options.their_agents else Times()
            lengths[str(words)] = _compared(ours.medians(), theirs.medians())
    often = str(OFTEN if OFTEN in options.words else options.words[-1])
    results = {"tokens": lengths, "bars": _bars(lengths[often], f"{options.codec}, {often}")}
    name = "resume" if options.codec == "native" else f"resume-{options.codec}"
    write_results(name, results, options.quick)


def _ours(folder: Path, home: Path, words: int, options: argparse.Namespace) -> Times:
    times, log = Times(), home.with_suffix(".log")
    agents = _agents(words, options.agents)
    command = agentcache(home, folder, "--codec", options.codec)
    with running(command, log, signal.SIGKILL) as server:
        times.cold += _round(server, agents, 0)
        for n in range(options.rounds):
            times.hot += _round(server, agents, 1 + n)
        for n in range(options.rounds):
            # Nobody's sequence is live under a new name: rows come from RAM.
            twins = [Agent(f"{one.name}-twin{n}", list(one.messages)) for one in agents]
            times.warm += _round(server, twins, 50 + n)
    for n in range(options.rounds):
        with running(command, log, signal.SIGKILL) as server:
            times.boot.append(server.boot_seconds)
            for agent in agents:
                _ask_after_kill(server, agent, n, times)
    return times


def _ask_after_kill(server: Server, agent: Agent, number: int, times: Times) -> None:
    before = server.metric("agentcache_model_tokens_total")
    turn = agent.ask(server, QUESTION.format(n=90 + number))
    passed = server.metric("agentcache_model_tokens_total") - before
    passed -= turn.completion - 1  # each decode step passes one
    last = agent.turns[-2]
    times.killed.append(turn.first)
    times.served.append((turn.prompt - passed) / (last.prompt + last.completion))


def _theirs(folder: Path, scratch: Path, words: int, options: argparse.Namespace) -> Times:
    times, log = Times(), scratch / "mlx_lm.log"
    agents = _agents(words, options.their_agents)
    with running(mlx_lm(folder), log, model=THEIR_MODEL) as server:
        times.cold += _round(server, agents, 0)
        for n in range(options.rounds):
            times.hot += _round(server, agents, 1 + n)
    with running(mlx_lm(folder), log, model=THEIR_MODEL) as server:
        times.boot.append(server.boot_seconds)
        times.killed += _round(server, agents, 90)
    return times


def _agents(words: int, count: int) -> list[Agent]:
    return [Agent.with_notes(f"agent{n}", 1000 * words + n, words) for n in range(count)]


def _round(server: Server, agents: list[Agent], number: int) -> list[float]:
    return [agent.ask(server, QUESTION.format(n=number)).first for agent in agents]


def _compared(mine: dict[str, float], other: dict[str, float]) -> dict[str, dict[str, float]]:
    ratios = {
        "cold / killed": mine["cold"] / mine["killed"],
        "killed / warm": mine["killed"] / mine["warm"],
        "killed / hot": mine["killed"] / mine["hot"],
    }
    if other:
        ratios["killed / mlx_lm.server's warm"] = mine["killed"] / other["hot"]
        ratios["cold / mlx_lm.server's cold"] = mine["cold"] / other["cold"]
        ratios["killed / mlx_lm.server's restarted"] = mine["killed"] / other["killed"]
    rounded = {name: float(f"{value:.3g}") for name, value in ratios.items()}
    return {"agentcache": mine, "mlx_lm.server": other, "ratios": rounded}


def _bars(found: Mapping[str, Mapping[str, float]], which: str) -> list[dict[str, object]]:
    ratios = found["ratios"]
    killed, cold = f"first token ({which} words) after kill -9", f"cold ({which} words)"
    bars = [
        bar(f"{killed} ÷ from RAM", ratios["killed / warm"], most=1.1),
        bar(f"{killed} ÷ hot", ratios["killed / hot"], most=1.25),
    ]
    if found["mlx_lm.server"]:
        warm, anew = ratios["killed / mlx_lm.server's warm"], ratios["cold / mlx_lm.server's cold"]
        bars.append(bar(f"{killed} ÷ mlx_lm.server's from RAM", warm, most=THEIRS[0]))
        bars.append(bar(f"{cold} ÷ mlx_lm.server's", anew, most=THEIRS[1]))
    return bars


if __name__ == "__main__":
    main()
