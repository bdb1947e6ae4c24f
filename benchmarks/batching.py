"""Agents that talk at once: throughput and first token for 1, 2, 4 and 8 of them.

Agents of equal length, and one long agent beside short ones; agentcache and mlx_lm.server one after
the other, on the same model folder, with the same BLAS. First all of them are new; then they come
back, in rounds, and decode together. Ratios are what to compare, seconds are this machine's.
"""

import argparse
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attrs import define, field
from driver import (
    THEIR_MODEL,
    Agent,
    Server,
    Turn,
    agentcache,
    default_model,
    mlx_lm,
    running,
    tiny_model,
)
from recording import bar, median, parsed, write_results

QUESTION = "Question {n}: tell a long story about your notes."
NEVER_END = {"logit_bias": {"2": -100}}  # the id of <|im_end|>: everybody says max_tokens tokens
MIXES = ("equal", "one long")


@define
class Times:
    """What rounds of so many agents took: seconds, and tokens a second of all agents together."""

    first: list[float] = field(factory=list)
    slowest: list[float] = field(factory=list)
    decode: list[float] = field(factory=list)
    whole: list[float] = field(factory=list)

    def add(self, turns: Sequence[Turn]) -> None:
        """One round."""
        self.first.append(median(turn.first for turn in turns))
        self.slowest.append(max(turn.first for turn in turns))
        self.decode.append(decode_rate(turns))
        self.whole.append(sum(one.completion for one in turns) / max(one.total for one in turns))

    def told(self) -> dict[str, float]:
        """Medians over the rounds."""
        return {
            "first token, s": median(self.first),
            "slowest first token, s": median(self.slowest),
            "decode, tokens/s": median(self.decode),
            "whole turns, tokens/s": median(self.whole),
        }


def decode_rate(turns: Sequence[Turn]) -> float:
    """Tokens a second of all turns, while all of them decode; 0 if they never did together.

    Some pieces of text are of two tokens, so pieces are counted for what they are on average.
    """
    if not all(turn.stamps for turn in turns):
        return 0.0
    began = max(turn.stamps[0] for turn in turns)
    ended = min(turn.stamps[-1] for turn in turns)
    said = 0.0
    for turn in turns:
        pieces = sum(began < stamp <= ended for stamp in turn.stamps)
        said += pieces * turn.completion / len(turn.stamps)
    return said / (ended - began) if ended > began else 0.0


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--words", type=int, default=200, help="of a short agent's notes")
    parser.add_argument("--long", type=int, default=4000, help="words of the long agent's notes")
    parser.add_argument("--tokens", type=int, default=48, help="that each agent says in a turn")
    parser.add_argument("--rounds", type=int, default=2)
    options = parsed(parser, agents=[1, 2], words=10, long=80, tokens=8, rounds=1)
    with tempfile.TemporaryDirectory(prefix="agentcache-bench-") as scratch:
        path = Path(scratch)
        folder = tiny_model(path) if options.quick else default_model()
        with running(agentcache(path / "home", folder), path / "ours.log") as server:
            ours = _measured(server, options)
        theirs_command = mlx_lm(folder, "--prompt-cache-size", "100")
        with running(theirs_command, path / "theirs.log", model=THEIR_MODEL) as server:
            theirs = _measured(server, options)
    write_results("batching", _compared(ours, theirs), options.quick)


Found = dict[str, dict[str, dict[str, float]]]  # mix and state, agents, what


def _measured(server: Server, options: argparse.Namespace) -> Found:
    found: Found = {}
    for mix in MIXES:
        agents: list[Agent] = []
        for count in sorted(options.agents, reverse=mix != "equal"):
            if mix == "equal" or not agents:
                agents = _agents(mix, count, options)
                told = _rounds(server, agents, 1, options.tokens).told()
                found.setdefault(f"{mix}, new", {})[str(count)] = told
            told = _rounds(server, agents[:count], options.rounds, options.tokens).told()
            found.setdefault(f"{mix}, coming back", {})[str(count)] = told
    return found


def _agents(mix: str, count: int, options: argparse.Namespace) -> list[Agent]:
    words = [options.words] * count
    if mix != "equal":
        words[0] = options.long
    names = (f"{mix.replace(' ', '-')}-{count}-{n}" for n in range(count))
    seeds = (10_000 * count + 100 * MIXES.index(mix) + n for n in range(count))
    return [Agent.with_notes(*one) for one in zip(names, seeds, words, strict=True)]


def _rounds(server: Server, agents: list[Agent], rounds: int, tokens: int) -> Times:
    times = Times()
    with ThreadPoolExecutor(len(agents)) as clients:
        for _ in range(rounds):
            number = len(agents[0].turns)
            asked = [
                clients.submit(agent.ask, server, QUESTION.format(n=number), tokens, **NEVER_END)
                for agent in agents
            ]
            times.add([one.result() for one in asked])
    return times


def _compared(ours: Found, theirs: Found) -> dict[str, object]:
    ratios: dict[str, dict[str, dict[str, float]]] = {
        state: {
            count: {what: _ratio(mine[what], theirs[state][count][what]) for what in mine}
            for count, mine in counts.items()
        }
        for state, counts in ours.items()
    }
    most = max(ratios["equal, coming back"], key=int)
    bars = [
        bar(
            f"decode of {most} agents, {told} ÷ mlx_lm.server",
            ratios[state][most]["decode, tokens/s"],
            least=least,
        )
        for state, told, least in (
            ("equal, coming back", "of equal length", 1.3),
            ("one long, coming back", "one of them long", 3.0),
        )
    ]
    return {"agentcache": ours, "mlx_lm.server": theirs, "ratios": ratios, "bars": bars}


def _ratio(one: float, other: float) -> float:
    return float(f"{one / other:.3g}") if other else 0.0


if __name__ == "__main__":
    main()
