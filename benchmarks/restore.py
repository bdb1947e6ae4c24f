"""Where the time goes when an agent comes back from disk, and when it is parked; one process.

For each codec and length: what each stage takes on one thread (rows for it, read and checksum,
decode, adopt, first forward), what all of them take as the server does them, and the same turn on
a live sequence. Each figure is the median of rounds in which the codecs take turns. Writes
benchmarks/results/restore.json.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from attrs import define, field
from driver import default_model, tiny_model
from recording import parsed, write_results

from agentcache.adapters.codecs import codec
from agentcache.adapters.disk.segments import DiskSegmentStore
from agentcache.adapters.mlx import blas

blas.load()

from agentcache.adapters.mlx.engine import BlasThreads, MLXEngine  # noqa: E402  (after its BLAS)
from agentcache.domain.path import Step  # noqa: E402
from agentcache.domain.plan import PrefillChunk, StepPlan  # noqa: E402
from agentcache.domain.request import Sampling  # noqa: E402
from agentcache.domain.segment import Segment  # noqa: E402
from agentcache.domain.tokens import tokens  # noqa: E402
from agentcache.fetcher import Fetched, Fetcher  # noqa: E402
from agentcache.mapped_memory import MappedMemory  # noqa: E402

GREEDY = Sampling(temperature=0)
NEW, SLACK, CHUNK = 32, 256, 512
ROW_BYTES = 2 << 30  # a server's share of 4 GB, of which 256 MB are kept ready
READY_TO_READ = 128 << 20
NAMES = ("native", "f16", "q8", "k8v4", "q4")


@define(eq=False)
class Clock:
    """Seconds of each stage, in every round."""

    times: dict[str, list[float]] = field(factory=lambda: defaultdict(list))

    @contextmanager
    def on(self, stage: str) -> Iterator[None]:
        """Count what the block takes."""
        began = time.perf_counter()
        yield
        self.times[stage].append(time.perf_counter() - began)

    def medians(self) -> dict[str, float]:
        """Milliseconds."""
        return {
            stage: float(f"{1000 * statistics.median(times):.3g}")
            for stage, times in self.times.items()
        }


@define(eq=False)
class Bench:
    """A model with one live sequence, number 0, of so many tokens."""

    engine: MLXEngine
    store: DiskSegmentStore
    memory: MappedMemory
    ids: list[int]
    _step: int = 0
    _sequence: int = 0

    def run(self, sequence: int, start: int, ids: list[int], last: bool = True) -> None:
        """One chunk; `last` samples a token after it."""
        self._step += 1
        chunk = PrefillChunk(sequence, start, tokens(ids), GREEDY if last else None)
        self.engine.submit(StepPlan(self._step, prefill=(chunk,)))
        problems = self.engine.collect().failed
        assert not problems, problems

    def decode(self, sequence: int) -> None:
        """One token more."""
        self._step += 1
        self.engine.submit(StepPlan(self._step, decode=(sequence,)))
        self.engine.collect()

    def prepare(self, count: int) -> None:
        """Let sequence 0 hold `count` rows."""
        self.engine.start(0, count + SLACK)
        for start in range(0, count, CHUNK):
            self.run(0, start, self.ids[start : min(start + CHUNK, count)], last=False)

    def hot(self, clock: Clock, count: int) -> None:
        """The new tokens on the live sequence."""
        self.engine.trim(0, count)
        with clock.on("first forward"):
            self.run(0, count, self.ids[count : count + NEW])
        with clock.on("decode step"):
            self.decode(0)
        self.engine.trim(0, count)

    def parked(self, name: str, clock: Clock, count: int) -> Segment:
        """Park sequence 0 whole, and its last 64 rows by themselves."""
        one, spec = codec(name), self.engine.card.spec
        with clock.on("encode 64 rows"):
            one.encode(spec, self.engine.export(0, count - 64, count))
        with clock.on("encode"):
            payload = one.encode(spec, self.engine.export(0, 0, count))
        root = name.encode().ljust(32)
        segment = Segment.following(root, None, 0, tokens(self.ids[:count]), payload.nbytes)
        self.store.put(segment, payload)
        return segment

    def stages(self, name: str, segment: Segment, clock: Clock) -> None:
        """One after another, on this thread."""
        one, spec, count = codec(name), self.engine.card.spec, len(segment)
        sequence = self._next()
        self._rest()
        with clock.on("rows"):
            out = self.engine.start(sequence, count + SLACK, count)
        with clock.on("read, checksum"):
            payload = self.store.read(segment)
        with clock.on("decode"):
            one.decode(spec, payload, out)
        with clock.on("decode again"):
            one.decode(spec, payload, out)
        with clock.on("adopt"):
            self.engine.adopt(sequence, count)
        with clock.on("first forward"):
            self.run(sequence, count, self.ids[count : count + NEW])
        self.engine.drop(sequence)

    def resume(self, name: str, segment: Segment, fetcher: Fetcher, clock: Clock) -> None:
        """As the server does it."""
        sequence, count, came = self._next(), len(segment), threading.Event()
        found: list[Fetched] = []
        step = Step(segment, count)
        self._rest()

        def done(fetched: Fetched) -> None:
            found.append(fetched)
            came.set()

        with clock.on("resume"):
            with clock.on("fetch"):
                out = self.engine.start(sequence, count + SLACK, count)
                fetcher.fetch(codec(name), (step,), {}, out, done)
                came.wait()
            assert not found[0].failed, found[0].failed
            self.engine.adopt(sequence, count)
            with clock.on("forward after it"):
                self.run(sequence, count, self.ids[count : count + NEW])
        self.engine.drop(sequence)

    def _rest(self) -> None:
        while self.engine.rest() or self.memory.prepare():
            pass

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024, 2048, 4096])
    parser.add_argument("--codecs", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2, help="of BLAS, in prefill")
    options = parsed(parser, tokens=[64], codecs=["native", "q8"], rounds=1)
    threads = BlasThreads(options.threads, 1, options.threads)
    numbers = np.random.default_rng(5).integers(3, 250, max(options.tokens) + NEW)
    with tempfile.TemporaryDirectory(prefix="agentcache-restore-") as scratch:
        home = Path(scratch)
        folder = tiny_model(home) if options.quick else default_model()
        engine = MLXEngine.load(
            folder, b"\1" * 32, folder.name, threads=threads, memory=MappedMemory.of(ROW_BYTES)
        )
        memory = MappedMemory.of(ROW_BYTES, READY_TO_READ)
        store = DiskSegmentStore.open(home / "segments", home / "quarantine", memory=memory)
        bench = Bench(engine, store, memory, numbers.tolist())
        found = {
            f"{count} tokens": _measured(bench, count, options.codecs, options.rounds)
            for count in options.tokens
        }
        store.close()
        engine.close()
    write_results("restore", found, options.quick)


def _measured(bench: Bench, count: int, names: list[str], rounds: int) -> dict[str, object]:
    bench.prepare(count)
    hot, clocks = Clock(), {name: Clock() for name in names}
    fetchers = {name: Fetcher(bench.engine.card.spec, bench.store) for name in names}
    for _ in range(rounds):
        for name, clock in clocks.items():
            segment = bench.parked(name, clock, count)
            bench.stages(name, segment, clock)
            bench.hot(hot, count)
            bench.resume(name, segment, fetchers[name], clock)
    for fetcher in fetchers.values():
        fetcher.close()
    bench.engine.drop(0)
    live = hot.medians()
    return {"hot": live, **{name: _with_ratios(clocks[name].medians(), live) for name in names}}


def _with_ratios(found: dict[str, float], live: dict[str, float]) -> dict[str, float]:
    resume = found["resume"] / live["first forward"]
    encode = found["encode 64 rows"] / live["decode step"]
    return {**found, "resume / hot": round(resume, 3), "encode 64 / step": round(encode, 3)}


if __name__ == "__main__":
    main()
