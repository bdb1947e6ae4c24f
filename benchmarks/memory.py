"""What an agent takes: in live caches, in RAM when idle, on disk; and the server's resident memory.

The same agents once with each codec, on the default model. Bytes per agent, and how many idle ones
a GB of RAM holds. What is resident is that of the whole server, without agents and with all of
them: some memory is made ready before anybody asks for it, so the difference is no agent's.
"""

import argparse
import tempfile
import time
from pathlib import Path

from driver import Agent, Server, agentcache, default_model, folder_bytes, running, tiny_model
from recording import bar, parsed, write_results

QUESTION = "Name one word from your notes."
CODECS = ("native", "f16", "q8", "k8v4", "q4")


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codecs", nargs="+", default=list(CODECS))
    parser.add_argument("--agents", type=int, default=4)
    parser.add_argument("--words", type=int, default=700)
    options = parsed(parser, codecs=["native", "q8"], agents=1, words=20)
    with tempfile.TemporaryDirectory(prefix="agentcache-bench-") as scratch:
        path = Path(scratch)
        folder = tiny_model(path) if options.quick else default_model()
        found = {
            codec: _measured(folder, path / codec, codec, options.agents, options.words)
            for codec in options.codecs
        }
    results: dict[str, object] = {"bytes an agent": found}
    if {"native", "q8"} <= found.keys():
        ratio = found["q8"]["idle in RAM"] / found["native"]["idle in RAM"]
        results["bars"] = [bar("RAM of an idle agent, q8 ÷ native float32", ratio, most=0.3)]
    write_results("memory", results, options.quick)


def _measured(folder: Path, home: Path, codec: str, count: int, words: int) -> dict[str, float]:
    command = agentcache(home, folder, "--codec", codec)
    with running(command, home.with_suffix(".log")) as server:
        resident = server.resident_bytes()
        idle, disk = server.metric("agentcache_warm_bytes"), folder_bytes(home / "segments")
        live = server.metric("agentcache_hot_bytes")
        agents = [Agent.with_notes(f"agent{n}", n, words) for n in range(count)]
        turns = [agent.ask(server, QUESTION) for agent in agents]
        in_ram = (_settled(server, "agentcache_warm_bytes") - idle) / count
        return {
            "tokens": sum(turn.prompt + turn.completion for turn in turns) / count,
            "live": (server.metric("agentcache_hot_bytes") - live) / count,
            "idle in RAM": in_ram,
            "on disk": (folder_bytes(home / "segments") - disk) / count,
            "idle agents in a GB of RAM": int(1e9 / in_ram),
            "server alone, resident": resident,
            "with all agents, resident": server.resident_bytes(),
        }


def _settled(server: Server, gauge: str) -> float:
    """What `gauge` says when it has said so for a second: the last turn is over before it is told
    everywhere.
    """
    values = [server.metric(gauge)]
    while len(values) < 5 or len(set(values[-5:])) > 1:
        time.sleep(0.25)
        values.append(server.metric(gauge))
    return values[-1]


if __name__ == "__main__":
    main()
