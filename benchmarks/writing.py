"""What is written, and what is not: bytes of a turn, of agents that share a prefix, of a fork.

Bytes are those of the segments' files, headers included. Beside them stands everything that the
process passed to write(2) meanwhile: the catalogue too, its log, the server's own log (Linux).
"""

import argparse
import json
import re
import tempfile
import time
import urllib.request
from pathlib import Path

from driver import Agent, Server, agentcache, default_model, folder_bytes, running, tiny_model
from recording import bar, median, parsed, write_results

from agentcache.domain.spec import ITEM_BYTES

QUESTION = "Name one word from your notes."
FORKS = 20


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, nargs="+", default=[40, 256, 2000], help="new tokens")
    parser.add_argument("--shared", type=int, default=2000, help="words of the shared prefix")
    parser.add_argument("--agents", type=int, default=10, help="that share it")
    options = parsed(parser, turns=[40, 60], shared=40, agents=3)
    with tempfile.TemporaryDirectory(prefix="agentcache-bench-") as scratch:
        path = Path(scratch)
        folder = tiny_model(path) if options.quick else default_model()
        command = agentcache(path / "home", folder)
        with running(command, path / "log") as server:
            home, row = path / "home", row_bytes(folder)
            turns = {str(count): _turn(server, home, count, row) for count in options.turns}
            forks = [_fork(server, home, f"turns-{count}") for count in options.turns]
        forked = dict(zip(map(str, options.turns), forks, strict=True))
        sharing = _sharing(folder, path, options)
    results = {
        "bytes of a turn, by its new tokens": turns,
        "agents that share a prefix": sharing,
        "a fork, by the tokens of its parent's last turn": forked,
        "bars": _bars(turns, sharing, forked, options),
    }
    write_results("writing", results, options.quick)


def row_bytes(folder: Path) -> int:
    """Bytes of the row of one token, in the dtype that it is computed in."""
    config = json.loads((folder / "config.json").read_text())
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    items = 2 * dim * config["num_key_value_heads"] * config["num_hidden_layers"]
    return int(items * ITEM_BYTES["float32"])


def _turn(server: Server, home: Path, words: int, row: int) -> dict[str, float]:
    """The second turn of an agent whose first one was short; `words` are its new tokens, about."""
    agent = Agent.with_notes(f"turns-{words}", words, 20)
    agent.ask(server, QUESTION)
    rows, stored, written = _rows(server), _file_bytes(home), _written(server)
    said = Agent.with_notes("-", words, max(1, words - 30)).messages[0]["content"]
    agent.ask(server, said)
    rows, stored = _rows(server) - rows, _file_bytes(home) - stored
    return {
        "rows computed": rows,
        "encoded bytes": rows * row,
        "written ÷ encoded": round(stored / (rows * row), 4),
        "everything written ÷ encoded": round((_written(server) - written) / (rows * row), 4),
    }


def _rows(server: Server) -> float:
    return server.metric("agentcache_model_tokens_total")


def _file_bytes(home: Path) -> int:
    return sum(path.stat().st_size for path in (home / "segments").rglob("*") if path.is_file())


def _written(server: Server) -> float:
    """Bytes that the process passed to write(2); 0 where the system does not tell."""
    path = Path(f"/proc/{server.process.pid}/io")
    found = re.search(r"wchar: (\d+)", path.read_text()) if path.exists() else None
    return float(found[1]) if found else 0.0


def _fork(server: Server, home: Path, name: str) -> dict[str, float]:
    """Milliseconds, and the bytes that all forks together added to the segments' files."""
    before, times = _file_bytes(home), []
    for number in range(FORKS):
        body = json.dumps({"name": f"{name}-fork{number}"}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{server.url}/v1/agents/{name}/fork", body, headers)
        began = time.perf_counter()
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
        times.append(1000 * (time.perf_counter() - began))
    copied = _file_bytes(home) - before
    return {"median, ms": median(times), "longest, ms": round(max(times), 2), "bytes": copied}


def _sharing(folder: Path, scratch: Path, options: argparse.Namespace) -> dict[str, float]:
    """Bytes of the segments' files for one agent, and for all of them."""
    home, prefix = scratch / "shared", Agent.with_notes("the team", 7, options.shared).messages
    with running(agentcache(home, folder), scratch / "shared.log") as server:
        before, one = folder_bytes(home / "segments"), 0
        for number in range(options.agents):
            agent = Agent(f"agent{number}", [dict(message) for message in prefix])
            agent.ask(server, f"I am number {number}. {QUESTION}")
            one = one or folder_bytes(home / "segments") - before
        everybody = folder_bytes(home / "segments") - before
    return {
        "agents": options.agents,
        "disk of one": one,
        "disk of all": everybody,
        "all ÷ one": round(everybody / one, 4),
    }


def _bars(
    turns: dict[str, dict[str, float]],
    sharing: dict[str, float],
    forks: dict[str, dict[str, float]],
    options: argparse.Namespace,
) -> list[dict[str, object]]:
    shared = f"disk of {options.agents} agents sharing {options.shared} tokens ÷ one"
    copied = sum(fork["bytes"] for fork in forks.values())
    return [
        *(
            bar(f"bytes written in a turn of {count} tokens ÷ encoded", one, most=1.1)
            for count, one in ((count, told["written ÷ encoded"]) for count, told in turns.items())
        ),
        bar(shared, sharing["all ÷ one"], most=1.2),
        bar("fork, median ms", max(fork["median, ms"] for fork in forks.values()), most=10),
        bar("payload bytes that forks copy", copied, most=0),
    ]


if __name__ == "__main__":
    main()
