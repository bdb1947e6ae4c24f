"""What a model hot-swap costs: seconds until the other one is served ÷ loading it anew.

The other one is the same model with one token less of context: another model of the same size.
"Fresh" is a process that has imported everything and then finds, loads and probes the model;
nothing is served meanwhile. Both read files that are in the page cache. One after the other, round
by round; the ratio is what to compare.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from driver import Server, agentcache, chat, default_model, running, tiny_model
from recording import ROOT, bar, median, parsed, write_results

FRESH = """
import sys, time
from pathlib import Path
from agentcache.adapters.mlx import blas
blas.load()
import agentcache.adapters.mlx.engine, agentcache.adapters.mlx.tokenizer
from agentcache.adapters.models.source import LocalModelSource
from agentcache.container import no_progress, open_model, open_tokenizer
from agentcache.settings import Settings
home, model = Path(sys.argv[1]), sys.argv[2]
began = time.perf_counter()
settings = Settings(home=home, model=model)
folder = LocalModelSource(home).resolve(model, no_progress)
open_tokenizer(folder, settings)
engine = open_model(folder, settings, home)
print(time.perf_counter() - began)
engine.close()
"""


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parsed(parser, rounds=1)
    with tempfile.TemporaryDirectory(prefix="agentcache-bench-", dir=ROOT / ".cache") as scratch:
        one = tiny_model(Path(scratch)) if options.quick else default_model()
        other = _another(one, Path(scratch) / "other")
        results = _measured(Path(scratch), (one, other), options.rounds)
    write_results("swap", results, options.quick)


def _measured(scratch: Path, models: tuple[Path, Path], rounds: int) -> dict[str, object]:
    home, fresh, swapped = scratch / "home", [], []
    with running(agentcache(home, models[0]), scratch / "log") as server:
        for _ in range(rounds):
            for model in reversed(models):
                fresh.append(_fresh(scratch / "elsewhere", model))
                swapped.append(_swap(server, model))
    ratio = median(swapped) / median(fresh)
    return {
        "rounds": 2 * rounds,
        "fresh load, seconds": {"median": median(fresh), "all": _rounded(fresh)},
        "hot-swap, seconds": {"median": median(swapped), "all": _rounded(swapped)},
        "hot-swap / fresh load": float(f"{ratio:.3g}"),
        "bars": [bar("model hot-swap ÷ loading it in a fresh process", ratio, most=1.2)],
    }


def _fresh(home: Path, model: Path) -> float:
    home.mkdir(exist_ok=True)
    command = [sys.executable, "-c", FRESH, str(home), str(model)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def _swap(server: Server, model: Path) -> float:
    """Seconds until the first answer can be asked for; the answer itself is not counted."""
    body = json.dumps({"model": str(model), "within": 60}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}/v1/admin/model", body, headers)
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=900) as answer:
        name = json.load(answer)["model"]
    seconds = time.perf_counter() - began
    served = Server(server.url, server.process, name, 0.0)
    chat(served, [{"role": "user", "content": "hi"}], "bench", 2)
    return seconds


def _another(model: Path, folder: Path) -> Path:
    """The same weights under a config that makes another digest of them."""
    folder.mkdir()
    for file in model.iterdir():
        if file.suffix in (".json", ".safetensors", ".jinja") and file.name != "agentcache.json":
            os.link(file, folder / file.name)
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").unlink()
    context = config.get("max_position_embeddings", 4096) - 1
    changed = config | {"max_position_embeddings": context}
    (folder / "config.json").write_text(json.dumps(changed))
    return folder


def _rounded(values: list[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


if __name__ == "__main__":
    main()
