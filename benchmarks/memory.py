"""What an agent takes: in live caches, in RAM when idle, on disk; and the server's resident memory.

The same agents once with each codec, on the default model. Bytes per agent.
"""

import argparse
import tempfile
from pathlib import Path

from driver import Agent, agentcache, default_model, folder_bytes, running
from recording import write_results

QUESTION = "Name one word from your notes."


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codecs", nargs="+", default=["native", "q8"])
    parser.add_argument("--agents", type=int, default=4)
    parser.add_argument("--words", type=int, default=700)
    options = parser.parse_args()
    folder = default_model()
    with tempfile.TemporaryDirectory(prefix="agentcache-bench-") as scratch:
        found = {
            codec: _measured(folder, Path(scratch) / codec, codec, options.agents, options.words)
            for codec in options.codecs
        }
    results: dict[str, object] = dict(found)
    if {"native", "q8"} <= found.keys():
        ratio = found["q8"]["idle in RAM"] / found["native"]["idle in RAM"]
        results["idle in RAM, q8 / native"] = round(ratio, 3)
    write_results("memory", results)


def _measured(folder: Path, home: Path, codec: str, count: int, words: int) -> dict[str, float]:
    command = agentcache(home, folder, "--codec", codec)
    with running(command, home.with_suffix(".log")) as server:
        resident = server.resident_bytes()
        idle, disk = server.metric("agentcache_warm_bytes"), folder_bytes(home / "segments")
        live = server.metric("agentcache_hot_bytes")
        agents = [Agent.with_notes(f"agent{n}", n, words) for n in range(count)]
        turns = [agent.ask(server, QUESTION) for agent in agents]
        return {
            "tokens": sum(turn.prompt + turn.completion for turn in turns) / count,
            "live": (server.metric("agentcache_hot_bytes") - live) / count,
            "idle in RAM": (server.metric("agentcache_warm_bytes") - idle) / count,
            "on disk": (folder_bytes(home / "segments") - disk) / count,
            "resident, live and idle": (server.resident_bytes() - resident) / count,
        }


if __name__ == "__main__":
    main()
