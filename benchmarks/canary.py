"""What the canary costs: resumes with and without it, by turns, in one process.

A resume restores rows from disk as the server does it, and runs new tokens up to the first sampled
one; with a canary, the last restored tokens run again in the same forward. Beside it stands what a
turn pays to remember what its last positions said. Writes benchmarks/results/canary.json.
"""

import argparse
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from attrs import define, field
from driver import default_model, tiny_model
from recording import bar, median, parsed, write_results

from agentcache.adapters.codecs import codec
from agentcache.adapters.disk.segments import DiskSegmentStore
from agentcache.adapters.mlx import blas

blas.load()

from agentcache.adapters.mlx.engine import BlasThreads, MLXEngine  # noqa: E402  (after its BLAS)
from agentcache.domain.path import Step  # noqa: E402
from agentcache.domain.plan import Again, PrefillChunk, StepPlan  # noqa: E402
from agentcache.domain.request import Sampling  # noqa: E402
from agentcache.domain.segment import Segment  # noqa: E402
from agentcache.domain.tokens import tokens  # noqa: E402
from agentcache.domain.trace import TOP, TRACED  # noqa: E402
from agentcache.fetcher import Fetched, Fetcher  # noqa: E402

GREEDY = Sampling(temperature=0)
CHUNK, SLACK = 512, 256
MOST = 5.0  # per cent of a resume
SHORT = 32  # new tokens of the resume that the bar is for

Costs = dict[int, list[tuple[float, float]]]  # by positions: seconds, and those of the processor


@define(eq=False)
class Bench:
    """A model, and the tokens that are run."""

    engine: MLXEngine
    store: DiskSegmentStore
    ids: list[int]
    _step: int = field(default=0, init=False)
    _sequence: int = field(default=0, init=False)

    def step(self, chunk: PrefillChunk | None, decode: tuple[int, ...] = ()) -> None:
        """One step, which must go well."""
        self._step += 1
        self.engine.submit(StepPlan(self._step, (chunk,) if chunk else (), decode))
        result = self.engine.collect()
        assert not result.failed, result.failed
        assert bool(result.retold) == bool(chunk and chunk.again)

    def parked(self, name: str, count: int) -> Segment:
        """A segment of the first `count` tokens, on disk."""
        self.engine.start(0, count)
        for start in range(0, count, CHUNK):
            piece = tokens(self.ids[start : min(start + CHUNK, count)])
            self.step(PrefillChunk(0, start, piece))
        payload = codec(name).encode(self.engine.card.spec, self.engine.export(0, 0, count))
        self.engine.drop(0)
        root = name.encode().ljust(32)
        segment = Segment.following(root, None, 0, tokens(self.ids[:count]), payload.nbytes)
        self.store.put(segment, payload)
        return segment

    def resume(
        self, name: str, segment: Segment, fetcher: Fetcher, new: int, positions: int
    ) -> None:
        """From disk to the first token; the last `positions` restored tokens run again."""
        self._sequence += 1
        sequence, count, came = self._sequence, len(segment), threading.Event()
        found: list[Fetched] = []

        def done(fetched: Fetched) -> None:
            found.append(fetched)
            came.set()

        out = self.engine.start(sequence, count + SLACK, count)
        fetcher.fetch(codec(name), (Step(segment, count),), {}, out, done)
        came.wait()
        assert not found[0].failed, found[0].failed
        self.engine.adopt(sequence, count)
        asked = ((*range(3, 3 + TOP),),) * positions
        again = Again(tokens(self.ids[count - positions : count]), asked) if positions else None
        ids = tokens(self.ids[count : count + new])
        self.step(PrefillChunk(sequence, count, ids, GREEDY, again=again))
        self.engine.drop(sequence)

    def remembering(self, rounds: int) -> dict[str, float]:
        """Milliseconds of the processor: to remember what a turn's end said, and a decode step."""
        found = [self._remembered() for _ in range(rounds)]
        return {
            "CPU ms to remember, once a turn": 1000 * median(told for told, _ in found),
            "CPU ms of a decode step": 1000 * median(step for _, step in found),
        }

    def _remembered(self) -> tuple[float, float]:
        self._sequence += 1
        one = self._sequence
        self.engine.start(one, SLACK)
        self.step(PrefillChunk(one, 0, tokens(self.ids[:SHORT]), GREEDY, traced=True))
        for _ in range(TRACED - 1):
            self.step(None, (one,))
        _, step = _timed(lambda: self.step(None, (one,)))
        _, told = _timed(lambda: self.engine.likeliest(one, SHORT + TRACED))
        self.engine.drop(one)
        return told, step


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048, help="restored")
    parser.add_argument("--new", type=int, nargs="+", default=[SHORT, 128], help="tokens after it")
    parser.add_argument("--codecs", nargs="+", default=["native", "q8"])
    parser.add_argument("--positions", type=int, nargs="+", default=[0, 1, TRACED, 4])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2, help="of BLAS, in prefill")
    options = parsed(parser, tokens=64, new=[8], codecs=["q8"], rounds=2)
    numbers = np.random.default_rng(5).integers(3, 250, options.tokens + max(options.new))
    with tempfile.TemporaryDirectory(prefix="agentcache-canary-") as scratch:
        home = Path(scratch)
        folder = tiny_model(home) if options.quick else default_model()
        threads = BlasThreads(options.threads, 1, options.threads)
        engine = MLXEngine.load(folder, b"\1" * 32, folder.name, threads=threads)
        store = DiskSegmentStore.open(home / "segments", home / "quarantine")
        bench = Bench(engine, store, numbers.tolist())
        found = {
            f"{options.tokens} tokens in {name}, {new} new": _summary(cost)
            for name in options.codecs
            for new, cost in _measured(bench, name, options).items()
        }
        remembered = bench.remembering(options.rounds)
        store.close()
        engine.close()
    least = min(options.new)
    short = [one for name, one in found.items() if name.endswith(f" {least} new")]
    worst = max(one[f"% with {TRACED} positions"] for one in short)
    bars = [bar(f"canary, of a resume with {least} new tokens, %", worst, most=MOST)]
    results = {"a resume, and the canary's part of it": found, "a turn": remembered, "bars": bars}
    write_results("canary", results, options.quick)


def _measured(bench: Bench, name: str, options: argparse.Namespace) -> dict[int, Costs]:
    segment = bench.parked(name, options.tokens)
    fetcher = Fetcher(bench.engine.card.spec, bench.store)
    costs: dict[int, Costs] = {new: defaultdict(list) for new in options.new}
    bench.resume(name, segment, fetcher, min(options.new), 0)  # what is done once is done
    for turn in range(options.rounds):
        for new in options.new:
            order = options.positions if turn % 2 else options.positions[::-1]
            for count in order:
                took = _timed(lambda c=count, n=new: bench.resume(name, segment, fetcher, n, c))  # type: ignore[misc]
                costs[new][count].append(took)
    fetcher.close()
    return costs


def _timed(action: Callable[[], object]) -> tuple[float, float]:
    began, worked = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - began, time.process_time() - worked


def _summary(costs: Costs) -> dict[str, float]:
    """Medians; and by how much a resume is longer with so many positions, of pairs of one round."""
    seconds = {count: [one for one, _ in took] for count, took in costs.items()}
    worked = {count: [one for _, one in took] for count, took in costs.items()}
    found = {"ms without": 1000 * median(seconds[0]), "CPU ms without": 1000 * median(worked[0])}
    for count in sorted(costs.keys() - {0}):
        found[f"% with {count} positions"] = _longer(seconds[0], seconds[count])
        found[f"CPU % with {count} positions"] = _longer(worked[0], worked[count])
    return found


def _longer(without: list[float], with_it: list[float]) -> float:
    pairs = zip(without, with_it, strict=True)
    return round(100 * (median(after / before for before, after in pairs) - 1), 2)


if __name__ == "__main__":
    main()
