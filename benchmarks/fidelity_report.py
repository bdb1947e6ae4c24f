"""docs/fidelity.md and its plots, from the results of the fidelity benchmark.

Run it by itself to write them again from benchmarks/results/fidelity.json.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import mean, median, stdev
from typing import Any

from plot import COLOURS, Axis, Plot
from recording import ROOT

DOCS = ROOT / "docs"
PLAIN = "plain q4"
# Perplexity at most so many per cent more, and KL at most so much.
GOALS = {"q8": (0.1, 1e-4), "k8v4": (0.2, 1.5e-3)}
COLOUR = dict(zip(("f16", "q8", "k8v4", "q4", PLAIN), COLOURS, strict=True))
Results = Mapping[str, Any]  # JSON


def write(results: Results) -> None:
    """Write the report and its two plots."""
    folder = DOCS / "fidelity"
    folder.mkdir(parents=True, exist_ok=True)
    _loss_plot(results).write(folder / "loss.svg")
    _drift_plot(results).write(folder / "rounds.svg")
    (DOCS / "fidelity.md").write_text("\n".join(_page(results)) + "\n")


def _page(results: Results) -> Iterator[str]:
    sizes, texts = results["tokens"], results["texts"]
    yield _INTRODUCTION.format(
        model=results["model"],
        count=len(texts),
        texts=", ".join(f"`{name}`" for name in texts),
        python=results["python"],
        total=(sizes["cached"] + sizes["scored"]) * len(texts),
        perplexity=results["native_perplexity"],
        **sizes,
    )
    yield from _table(results["codecs"])
    yield _READING.format(**sizes)
    yield from _goals(results["codecs"])
    drift = results["drift"]
    texts = len(next(iter(drift.values()))["once"])
    yield _ROUNDS.format(texts=texts, **results["rounds"])
    yield from _rounds(drift)


_INTRODUCTION = """\
# What a codec costs in quality

Written by `make fidelity`; all figures are in `benchmarks/results/fidelity.json`.

{model}, computed in float32. {count} English texts, {total} tokens: the topics {texts} of
Python's language reference as the standard library carries it (`pydoc_data.topics`, Python
{python}). The first {cached} tokens of each are run natively; their rows are exported, encoded,
decoded into the buffers of a new sequence and adopted, as in the server; the {scored} tokens that
follow in the text are scored on them. Native's perplexity on these is {perplexity}.
"""

_READING = """
- Bytes: the encoded row of one token, all layers, and its share of native's. q4, and k8v4 for its
  values, keep the first row of a sequence in native bytes (decision 0007).
- `plain q4` is no codec: affine quantisation in groups of 64 and nothing else, for comparison.
- Perplexity: its change against `native`, with the standard error over tokens.
- KL: divergence from native's distribution, in nats a token: mean, and 99th percentile.
- Same top: how often the likeliest token is the same.
- Same words: tokens said greedily before the first other one, median over the texts; of {said}.

`native` has to be, and is, exactly 0: its rows are the same bits.

![KL divergence by bytes a token](fidelity/loss.svg)
"""

_ROUNDS = """
## Twenty rounds of parking and resuming

Rows are encoded once, when they are new. A later turn decodes them, adds its own, and encodes only
those. So the rows of the first turn are, after twenty rounds, bit for bit what they were after one
(the benchmark checks it). The rows of later turns are computed from decoded ones.

![KL divergence by round](fidelity/rounds.svg)

From the beginnings of texts ({texts}), {first} tokens at first, {piece} more a round: KL of a
round's tokens, mean over the texts, of the first five and of the last five rounds, and median of
all rounds. *In one go*: all earlier rows are native's, encoded once for this round: what a codec
costs without any rounds. *All again*: what would happen if all rows were encoded anew each time
they are parked, which agentcache never does.

Drift is what rounds add: *encoded once* over *in one go*, round by round of the same text
(geometric mean, with its standard error; 1 is none). The columns say less: later rounds run other
text, and the mean of so few tokens hangs on those at which the model is least sure.
"""


def _table(codecs: Results) -> Iterator[str]:
    yield "| codec | bytes | share | perplexity | KL | 99th | same top | same words |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|"
    native = codecs["native"]["bytes_per_token"]
    for name, one in codecs.items():
        change = f"{one['perplexity_percent']:+.3f} % ± {one['perplexity_error_percent']:.3f}"
        yield (
            f"| {name} | {one['bytes_per_token']:,} | {one['bytes_per_token'] / native:.3f} "
            f"| {change} | {_short(one['kl'])} | {_short(one['kl_p99'])} "
            f"| {one['top1_percent']:.2f} % | {median(one['greedy_same']):g} |"
        )


def _goals(codecs: Results) -> Iterator[str]:
    yield "## Goals\n\n| goal | measured | |\n|---|---|---|"
    for name, (percent, kl) in GOALS.items():
        one = codecs[name]
        change, found = one["perplexity_percent"], one["kl"]
        met = _met(abs(change) <= percent)
        yield f"| {name}: perplexity within {percent} % | {change:+.3f} % | {met} |"
        yield f"| {name}: KL ≤ {_short(kl)} | {_short(found)} | {_met(found <= kl)} |"
    ratio = codecs["q4"]["kl"] / codecs[PLAIN]["kl"]
    yield f"| q4: KL ≤ half of {PLAIN} | {ratio:.2f} of it | {_met(ratio <= 0.5)} |"


def _rounds(drift: Results) -> Iterator[str]:
    yield "| codec | | rounds 1 to 5 | the last 5 | median |\n|---|---|--:|--:|--:|"
    for name, ways in drift.items():
        for way, label in _WAYS.items():
            kl = _by_round(ways[way])
            middle = median(one for text in ways[way] for one in text)
            told = " | ".join(map(_short, (mean(kl[:5]), mean(kl[-5:]), middle)))
            yield f"| {name} | {label} | {told} |"
    yield "\n| codec | once ÷ in one go, rounds 2 to 10 | rounds 11 to 20 |\n|---|--:|--:|"
    for name, ways in drift.items():
        first, second = (_drift_ratio(ways, part) for part in (slice(1, 10), slice(10, None)))
        yield f"| {name} | {first} | {second} |"


def _by_round(texts: Sequence[Sequence[float]]) -> list[float]:
    return [mean(kl) for kl in zip(*texts, strict=True)]


def _drift_ratio(ways: Results, rounds: slice) -> str:
    pairs = zip(ways["once"], ways["in one go"], strict=True)
    both = [pair for text, go in pairs for pair in zip(text[rounds], go[rounds], strict=True)]
    logs = [math.log(once / go) for once, go in both]
    if len(logs) < 2:
        return "-"
    ratio, error = math.exp(mean(logs)), stdev(logs) / math.sqrt(len(logs))
    return f"{ratio:.2f} ± {ratio * error:.2f}"


_WAYS = {"once": "encoded once", "in one go": "in one go", "again": "all again"}


def _loss_plot(results: Results) -> Plot:
    shown = {name: one for name, one in results["codecs"].items() if one["kl"] > 1e-8}
    y = _decades("KL, nats a token", (one["kl"] for one in shown.values()))
    plot = Plot("Loss by size", Axis("bytes a token", 0, 25_000, range(0, 25_001, 5_000)), y)
    for name, one in shown.items():
        plot.point(one["bytes_per_token"], one["kl"], name, COLOUR[name])
    return plot


def _drift_plot(results: Results) -> Plot:
    drift = results["drift"]
    y = _decades(
        "KL, nats a token", (kl for one in drift.values() for kl in _by_round(one["once"]))
    )
    rounds = len(next(iter(drift.values()))["once"][0])
    title = "Rounds of parking and resuming (dashed: all rows encoded in one go)"
    plot = Plot(title, Axis("round", 1, rounds, (1, 5, 10, 15, rounds)), y)
    for name, ways in drift.items():
        plot.line(list(enumerate(_by_round(ways["once"]), 1)), name, COLOUR[name])
        plot.line(list(enumerate(_by_round(ways["in one go"]), 1)), "", COLOUR[name])
    return plot


def _decades(label: str, values: Iterable[float]) -> Axis:
    found = list(values)
    low, high = math.floor(math.log10(min(found))), math.ceil(math.log10(max(found)))
    return Axis(label, 10.0**low, 10.0**high, [10.0**n for n in range(low, high + 1)], log=True)


def _short(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def _met(met: bool) -> str:
    return "met" if met else "**missed**"


if __name__ == "__main__":
    write(json.loads((ROOT / "benchmarks" / "results" / "fidelity.json").read_text()))
