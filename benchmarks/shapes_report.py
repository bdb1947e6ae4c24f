"""docs/shapes.md from what benchmarks/shapes.py measured."""

from collections.abc import Mapping
from typing import Any

INTRO = """# Kinds of cache

Which caches a model has is found out when it is loaded: it makes its own, runs a few tokens, and
the classes, shapes and dtypes of what is in them tell the rest. There are no files about single
models. A second look decides how it runs: the model has to say with our caches what it says with
its own, the same after its rows were taken out and put back, and several sequences in one forward
what each says alone. What fails is done without, and told in the log and in the model's notes.

| kind | mlx-lm's class | what a segment [a, b) holds | where a sequence can go on |
|---|---|---|---|
| full | `KVCache` | the rows of all its tokens | after any row |
| window(w) | `RotatingKVCache`, `ChunkedKVCache` | the last min(w, b - a) rows | at b |
| state | `ArraysCache` | its arrays at b | at b |
| whole | any other | all that is in the object, at b | at b |

A `CacheList` is taken apart. Windows lie in temporal order in an array of w rows and some slack, at
most 256, however long the sequence. What is kept whole is kept anew at every end of a segment, and
its sequences decode one after another: it works, but a class of its own would be better.

Latent attention that multiplies its positions itself (`deepseek_v3`) gets them filled up to the
longest sequence of a batch, its latents as they are. `llama4` makes one mask of its chunks for a
whole batch, from the offset of one cache, which cannot be right for sequences of different length:
they decode one by one.

Measured by `make bench-shapes` on models of random weights, a few layers of width 256, on two Linux
cores (so ratios count, not milliseconds): a sequence of {tokens} tokens goes on by 30. "Hot" is the
time to the first token of a sequence that is live. The load average at the end was {load:.1f}: with
more than two, others were at work, and ratios say little (below 1 they are noise).

"""


def report(found: Mapping[str, Mapping[str, Any]], tokens: int, load: float) -> str:
    """The whole page."""
    return INTRO.format(tokens=f"{tokens:,}", load=load) + "\n".join(
        (*_costs(found), "", *_verdicts(found), "", *_bytes(found), "")
    )


def _costs(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [
        "## Coming back",
        "",
        "| architecture | hot, ms | from RAM ÷ hot | from disk ÷ hot | from nothing ÷ hot |",
        "|---|---|---|---|---|",
    ]
    for name, one in found.items():
        nothing = one["ms from nothing"] / one["ms hot"]
        lines.append(
            f"| {name} | {one['ms hot']} | {one['RAM / hot']} | {one['disk / hot']} "
            f"| {nothing:.1f} |"
        )
    return lines


def _verdicts(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [
        "## What was found out when it was loaded (Linux, CPU)",
        "",
        "| architecture | caches | rows live in | decode | why not in one forward |",
        "|---|---|---|---|---|",
    ]
    for name, one in found.items():
        lines.append(
            f"| {name} | {one['caches']} | {one['rows live in']} | {one['decode']} | {one['why']} |"
        )
    return lines


def _bytes(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [
        "## Bytes by codec and kind",
        "",
        "Full layers per token; windows, states and whole caches per end of a segment. States and "
        "whole caches are kept as they are by every codec.",
        "",
        "| architecture | kind | native | f16 | q8 | k8v4 | q4 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        for kind in ("full, a token", "windows", "states", "whole"):
            sizes = [codec[kind] for codec in one["bytes"].values()]
            if any(sizes):
                cells = " | ".join(f"{size:,}" for size in sizes)
                lines.append(f"| {name} | {kind} | {cells} |")
    return lines
