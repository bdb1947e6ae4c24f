"""docs/benchmarks.md and its plots, from what is in benchmarks/results.

Run it by itself to write them again. What was not measured is left out, and the page says so.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import report_plots
from attrs import frozen
from reasons import reason
from recording import BUSY, RESULTS, ROOT
from report_tables import batching, by_name, core, figures, resume, shapes, stages

Found = Mapping[str, Any]  # JSON

INTRO = """\
# Benchmarks

Written by `make bench` (all of it), or by `python benchmarks/report.py` from what is in
`benchmarks/results`. Ratios are what to compare: both sides of each were measured in one run, on
one machine, with the same weights and the same BLAS. Seconds are that machine's. Kinds of cache
are in [shapes.md](shapes.md), what codecs cost in quality in [fidelity.md](fidelity.md).
"""


@frozen
class Section:
    """One benchmark's part of the page: the tables that `tables` makes of its results."""

    name: str
    title: str
    told: str
    tables: Callable[[Found], Iterator[str]]
    plots: Mapping[str, Callable[[Found], report_plots.Plot]] = {}


SECTIONS = (
    Section(
        "resume",
        "Coming back",
        "Rows as they are (`native`). Median seconds to the first token: from nothing (*cold*), "
        "on a live sequence (*hot*), from encoded rows in RAM (*warm*), and after kill -9 and a "
        "restart (*killed*, from disk)."
        " *Served*: the share of the last turn's tokens that were not passed to the model again.",
        resume,
        {"first-token": report_plots.first_token, "speed-up": report_plots.speed_up},
    ),
    Section(
        "resume-q8",
        "Coming back, in eight bits",
        "The same with rows in `q8`, the default codec of new agents: less is read, and "
        "mlx_lm.server still keeps its own as they are.",
        resume,
    ),
    Section(
        "restore",
        "Where the time goes",
        "Milliseconds of each stage on one thread, and of the whole as the server does it, with "
        "32 new tokens behind the restored ones.",
        stages,
    ),
    Section(
        "canary",
        "The canary",
        "What it costs a resume to run its last tokens again, and to compare what they say with "
        "what they said before. Medians of rounds by turns; CPU time is that of the process.",
        figures,
    ),
    Section(
        "batching",
        "Agents that talk at once",
        "Agents of equal length, and one long agent beside short ones: all of them new, then "
        "coming back in rounds. *Decode* counts the time in which all of them decode, *whole "
        "turns* everything. Ours, then in brackets its ratio to `mlx_lm.server`'s.",
        batching,
        {"throughput": report_plots.throughput},
    ),
    Section(
        "memory",
        "What an agent takes",
        "Bytes an agent, by codec.",
        by_name("bytes an agent", "codec"),
        {"memory": report_plots.memory},
    ),
    Section(
        "writing", "What is written", "Bytes of a turn, of a shared prefix, of a fork.", figures
    ),
    Section(
        "overhead",
        "CPU time beside the model",
        "Microseconds a token and stream, beside an engine that computes nothing and a real one.",
        by_name("microseconds of CPU a token and stream", "at once"),
    ),
    Section(
        "idle_streams",
        "Beside streams that say nothing",
        "What a token of one running stream costs, on a server whose engine computes nothing and "
        "takes 20 ms for a step: alone, beside open streams that only say that they are alive, and "
        "beside turns that wait for its agent. Medians of rounds by turns.",
        by_name("a stream that runs", ""),
    ),
    Section("stalls", "Stalls of the event loop", "Under load, with bodies of 256 KB.", figures),
    Section(
        "core",
        "Planner, lineage, pool and registry alone",
        "Microseconds of CPU beside so many idle sessions and ten that talk, how often a second, "
        "the growth, and that of bytecode instructions: where only time grows, memory is far.",
        core,
        {"core": report_plots.growth},
    ),
    Section("swap", "A hot-swap", "Against loading the model anew.", figures),
    Section("compaction", "Many turns, merged", "The rows of 200 turns from disk.", figures),
    Section(
        "dropin",
        "mlx_lm.server with our prompt cache",
        "First token in seconds, its own prompt cache against ours in its place.",
        figures,
    ),
    Section("shapes", "Kinds of cache", "First token from RAM and disk ÷ hot.", shapes),
)


def write_report(results: Path, page: Path) -> None:
    """Write `page`, and its plots into a folder beside it that is named like it."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    sections = [(one, found[one.name]) for one in SECTIONS if one.name in found]
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for section, result in sections:
        for name, plot in section.plots.items():
            plot(result).write(folder / f"{name}.svg")
    missing = [one.title for one in SECTIONS if one.name not in found]
    lines = [INTRO, *_bars(sections), *_missing(missing)]
    for section, result in sections:
        lines += _section(section, result, folder.name)
    page.write_text("\n".join(lines).rstrip() + "\n")


def _bars(sections: list[tuple[Section, Found]]) -> Iterator[str]:
    yield "## Bars\n\n| what | measured | bar | | how |\n|---|--:|--:|---|---|"
    missed = []
    for _, result in sections:
        for one in result.get("bars", ()):
            missed += [] if one["met"] else [one["what"]]
            met = "met" if one["met"] else "**missed**"
            command = result["made"]["command"]
            found = f"{one['found']:,g}"
            yield f"| {one['what']} | {found} | {one['bar']} | {met} | `{command}` |"
    yield ""
    if missed:
        yield "Missed, and why:\n"
        yield from (f"- {what}: {reason(what)}" for what in missed)
        yield ""


def _missing(titles: list[str]) -> Iterator[str]:
    if titles:
        yield f"Not measured: {', '.join(titles)}.\n"


def _section(section: Section, result: Found, folder: str) -> Iterator[str]:
    yield f"## {section.title}\n\n{section.told}\n"
    yield from section.tables(result)
    yield ""
    for name in section.plots:
        yield f"![{section.title}: {name}]({folder}/{name}.svg)\n"
    if "made" in result:
        yield from _made(result["made"])


def _made(made: Found) -> Iterator[str]:
    machine, versions, load = made["machine"], made["versions"], made["load average"]
    yield (
        f"`{made['command']}`, {made['seconds']} s, {made['at']}, commit {made['commit']}; "
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory, GB']} GB, "
        f"{machine['system']}; {', '.join(f'{name} {one}' for name, one in versions.items())}; "
        f"load average {load['before']} before and {load['after']} after.\n"
    )
    if load["before"] > BUSY:
        yield "> **The machine was busy when this began: its times say little.**\n"


def main() -> None:
    """Write the page of the results that are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of JSON files")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md")
    options = parser.parse_args()
    write_report(options.results, options.page)


if __name__ == "__main__":
    main()
