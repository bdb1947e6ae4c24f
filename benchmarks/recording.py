"""What a benchmark found, as JSON: with its bars, its command, and the machine it ran on."""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
QUICK_RESULTS = RESULTS / "tmp"
BUSY = 1.5  # load average from which on times say little
PACKAGES = ("agentcache-mlx", "mlx", "mlx-lm", "numpy", "cmeel-openblas")

_BEGAN, _LOAD = time.monotonic(), os.getloadavg()[0]


def parsed(parser: argparse.ArgumentParser, **quick: object) -> argparse.Namespace:
    """The options of the command line; `--quick` makes `quick` their defaults."""
    told = "seconds instead of minutes: shows that it runs, its figures mean nothing"
    parser.add_argument("--quick", action="store_true", help=told)
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(**quick)
    return parser.parse_args()


def median(values: Iterable[float]) -> float:
    """The median, to four digits."""
    return float(f"{statistics.median(values):.4g}")


def bar(
    what: str, found: float, *, most: float | None = None, least: float | None = None
) -> dict[str, object]:
    """A figure beside the bar that it has to pass."""
    met = (most is None or found <= most) and (least is None or found >= least)
    told = f"≤ {most:g}" if most is not None else f"≥ {least:g}"
    return {"what": what, "found": float(f"{found:.3g}"), "bar": told, "met": met}


def write_results(name: str, results: Mapping[str, object], quick: bool = False) -> None:
    """Keep `results` and what they were made with in benchmarks/results, and print them.

    What `quick` runs found goes to a folder of its own, which is not in the repository.
    """
    folder = QUICK_RESULTS if quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**results, "made": _circumstances()}, indent=2)
    (folder / f"{name}.json").write_text(text + "\n")
    print(text)


def _circumstances() -> dict[str, object]:
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *_from_root(sys.argv)]),
        "seconds": round(time.monotonic() - _BEGAN),
        "commit": _commit(),
        "load average": {"before": round(_LOAD, 2), "after": round(os.getloadavg()[0], 2)},
        "machine": _machine(),
        "versions": {"python": platform.python_version()} | {one: version(one) for one in PACKAGES},
    }


def _from_root(words: list[str]) -> list[str]:
    program = Path(words[0]).resolve()
    return [str(program.relative_to(ROOT)) if program.is_relative_to(ROOT) else "-", *words[1:]]


def _commit() -> str:
    """The commit that is checked out, with a plus when files were changed since."""
    status = ("status", "--porcelain", "--untracked-files=no", "--", "src", "benchmarks/*.py")
    return _git("rev-parse", "--short", "HEAD") + ("+" if _git(*status) else "")


def _git(*words: str) -> str:
    command = ("git", "-C", str(ROOT), *words)
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()


def _machine() -> dict[str, object]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory, GB": round(memory / 1e9, 1),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())
