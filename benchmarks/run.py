"""All benchmarks, one after the other, and the report of what they found.

What fails is told, and the others run all the same. Without `--quick` it takes most of an hour, and
wants a machine that does nothing else.
"""

import argparse
import subprocess
import sys
import time

from recording import QUICK_RESULTS, RESULTS, ROOT
from report import write_report

# The ones without servers first: they are the quickest.
BENCHMARKS = (
    "core",
    "overhead",
    "idle_streams",
    "compaction",
    "writing",
    "memory",
    "swap",
    "restore",
    "canary",
    "stalls",
    "dropin",
    "resume",
    "batching",
    "shapes",
    "fidelity",
)


def main() -> None:
    """Run them, and write docs/benchmarks.md; of quick ones a page beside their results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="each of them with --quick")
    parser.add_argument("--only", nargs="+", default=BENCHMARKS, choices=BENCHMARKS)
    options = parser.parse_args()
    failed = [name for name in options.only if not _run(name, options.quick)]
    if options.quick:
        write_report(QUICK_RESULTS, QUICK_RESULTS / "benchmarks.md")
    else:
        write_report(RESULTS, ROOT / "docs" / "benchmarks.md")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _run(name: str, quick: bool) -> bool:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *["--quick"] * quick]
    began = time.monotonic()
    print(f"== {name}", flush=True)
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL if quick else None)
    print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    main()
