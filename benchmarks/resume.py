"""What it costs to bring an agent back: first-token times cold, hot, from RAM, and after kill -9.

agentcache and mlx_lm.server one after the other, on the same model folder, with the same BLAS. Each
figure is a median over agents and rounds; ratios are what to compare, seconds are this machine's.
"""

import argparse
import signal
import tempfile
from pathlib import Path

from attrs import asdict, define, field
from driver import THEIR_MODEL, Agent, Server, agentcache, default_model, mlx_lm, running
from recording import median, write_results

QUESTION = "Question {n}: name one word from your notes."
ROUNDS = 3


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
    parser.add_argument("--words", type=int, nargs="+", default=[700, 2300])
    parser.add_argument("--agents", type=int, default=2)
    parser.add_argument("--skip-mlx-lm", action="store_true", help="measure agentcache alone")
    options = parser.parse_args()
    folder, results = default_model(), {}
    with tempfile.TemporaryDirectory(prefix="agentcache-bench-") as scratch:
        for words in options.words:
            ours = _ours(folder, Path(scratch) / str(words), words, options.agents)
            theirs = Times()
            if not options.skip_mlx_lm:
                theirs = _theirs(folder, Path(scratch), words, options.agents)
            results[f"{words} words"] = _compared(ours, theirs)
    write_results("resume", results)


def _ours(folder: Path, home: Path, words: int, count: int) -> Times:
    times, log = Times(), home.with_suffix(".log")
    agents = _agents(words, count)
    command = agentcache(home, folder)
    with running(command, log, signal.SIGKILL) as server:
        times.cold += _round(server, agents, 0)
        for n in range(ROUNDS):
            times.hot += _round(server, agents, 1 + n)
        for n in range(ROUNDS):  # nobody's sequence is live under a new name: rows come from RAM
            twins = [Agent(f"{one.name}-twin{n}", list(one.messages)) for one in agents]
            times.warm += _round(server, twins, 50 + n)
    for n in range(ROUNDS):
        with running(command, log, signal.SIGKILL) as server:
            times.boot.append(server.boot_seconds)
            for agent in agents:
                before = server.metric("agentcache_model_tokens_total")
                turn = agent.ask(server, QUESTION.format(n=90 + n))
                passed = server.metric("agentcache_model_tokens_total") - before
                passed -= turn.completion - 1  # each decode step passes one
                last = agent.turns[-2]
                times.killed.append(turn.first)
                times.served.append((turn.prompt - passed) / (last.prompt + last.completion))
    return times


def _theirs(folder: Path, scratch: Path, words: int, count: int) -> Times:
    times, log = Times(), scratch / "mlx_lm.log"
    agents = _agents(words, count)
    with running(mlx_lm(folder), log, model=THEIR_MODEL) as server:
        times.cold += _round(server, agents, 0)
        for n in range(ROUNDS):
            times.hot += _round(server, agents, 1 + n)
    with running(mlx_lm(folder), log, model=THEIR_MODEL) as server:
        times.boot.append(server.boot_seconds)
        times.killed += _round(server, agents, 90)
    return times


def _agents(words: int, count: int) -> list[Agent]:
    return [Agent.with_notes(f"agent{n}", 1000 * words + n, words) for n in range(count)]


def _round(server: Server, agents: list[Agent], number: int) -> list[float]:
    return [agent.ask(server, QUESTION.format(n=number)).first for agent in agents]


def _compared(ours: Times, theirs: Times) -> dict[str, object]:
    mine, other = ours.medians(), theirs.medians()
    ratios = {
        "killed / warm": mine["killed"] / mine["warm"],
        "killed / hot": mine["killed"] / mine["hot"],
    }
    if other:
        ratios["killed / mlx_lm.server's warm"] = mine["killed"] / other["hot"]
        ratios["cold / mlx_lm.server's cold"] = mine["cold"] / other["cold"]
        ratios["killed / mlx_lm.server's restarted"] = mine["killed"] / other["killed"]
    rounded = {name: float(f"{value:.3g}") for name, value in ratios.items()}
    return {"agentcache": mine, "mlx_lm.server": other, "ratios": rounded}


if __name__ == "__main__":
    main()
