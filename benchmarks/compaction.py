"""What it costs to restore an agent of many turns: as a long chain, merged, and as one turn.

The default model's rows (random numbers), the stores of a home on disk, the reader threads; no
model. Medians over rounds, files in the page cache. The ratio to one turn is what to compare.
"""

import argparse
import queue
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from attrs import define, field
from recording import median, parsed, write_results

from agentcache.adapters.codecs import codec
from agentcache.adapters.disk.catalogue import SqliteSessionStore
from agentcache.adapters.disk.home import Home
from agentcache.adapters.disk.segments import DiskSegmentStore
from agentcache.adapters.memory.telemetry import RecordingTelemetry
from agentcache.compactor import Compactor
from agentcache.disk_room import DiskRoom
from agentcache.domain.lineage import Lineage
from agentcache.domain.path import Match
from agentcache.domain.plan import Park
from agentcache.domain.registry import SessionRegistry
from agentcache.domain.session import Session, SessionKey
from agentcache.domain.spec import CacheSpec, LayerSpec
from agentcache.domain.tokens import Tokens, tokens
from agentcache.fetcher import Fetched, Fetcher
from agentcache.keeper import Keeper
from agentcache.outbox import Outbox
from agentcache.ports.codec import Codec
from agentcache.ports.rows import Rows, empty_rows
from agentcache.tiers import Tiers
from agentcache.writer import Writer

SPEC = CacheSpec((LayerSpec.full(3, 64),) * 30)  # smollm2-135m
ROOT = bytes(32)
KEY = SessionKey("default", ROOT, "ada")
SEGMENT_ROWS = 2048
ROUNDS = 15
NAMES = ("chain", "merged", "one turn")


@define(eq=False)
class Bench:
    """A home, and what keeps an agent in it."""

    keeper: Keeper
    compactor: Compactor
    fetcher: Fetcher
    codec: Codec
    telemetry: RecordingTelemetry
    rows: Rows
    inbox: "queue.SimpleQueue[Callable[[], None]]"
    tolerance: float
    stall: float = field(default=0.0)

    def export(self, _sequence: int, start: int, stop: int) -> Rows:
        """The rows [start, stop): the engine's part."""
        return self.rows.part(start, stop)

    def turn(self, ids: "Tokens[int]", cuts: tuple[int, ...], merge: bool) -> None:
        """Keep what is new of `ids`, and wait until all is written, and merged."""
        path = self.keeper.keep(self, Park(1, ROOT, ids, cuts), self.codec)
        known = self.keeper.registry.get(KEY)
        before = known or Session(KEY)
        self.keeper.write(path, before.succeeded((), path.cursor, b"", 0.0))
        self.rest()
        if merge:
            self.compactor.work(quiet=True)
            while self.keeper.is_writing:
                self.rest()
                self.compactor.work(quiet=True)

    def rest(self) -> None:
        """Run what is posted to the engine thread, until nothing is to come."""
        while self.keeper.is_writing:
            call = self.inbox.get()
            began = time.perf_counter()
            call()
            self.stall = max(self.stall, time.perf_counter() - began)

    def path(self) -> Match:
        """Where the agent is."""
        session = self.keeper.registry.get(KEY)
        assert session is not None
        assert session.cursor is not None
        return self.keeper.lineage.path(session.cursor)

    def restore(self) -> float:
        """Seconds to bring all rows back from the files."""
        path, told = self.path(), queue.SimpleQueue[Fetched]()
        out = empty_rows(SPEC, 0, path.length)
        for array in out.full.values():
            array.fill(0)
        began = time.perf_counter()
        self.fetcher.fetch(self.codec, path.restoring(), {}, out, told.put)
        found = told.get()
        seconds = time.perf_counter() - began
        assert not found.failed, found.failed
        wanted = self.rows.full["g0.k"][:, :, : path.length]
        assert np.allclose(out.full["g0.k"], wanted, atol=self.tolerance)
        return seconds


@contextmanager
def bench(home: Path, name: str, rows: Rows) -> Iterator[Bench]:
    """A bench over a new home."""
    telemetry, inbox = RecordingTelemetry(), queue.SimpleQueue[Callable[[], None]]()
    with Home.open(home) as opened:
        segments = DiskSegmentStore.open(opened.segments, opened.quarantine)
        writer = Writer(segments, SqliteSessionStore.open(opened.catalogue))
        writer.open()
        outbox = Outbox(Lineage(SPEC), SessionRegistry(), writer, inbox.put)
        tiers = Tiers(outbox, telemetry, warm_cap=0)
        keeper = Keeper(SPEC, tiers, DiskRoom(tiers, cap=1 << 40))
        fetcher = Fetcher(SPEC, segments)
        compactor = Compactor(keeper, fetcher, lambda _root: codec(name))
        tolerance = 0.0 if name == "native" else 0.5
        yield Bench(keeper, compactor, fetcher, codec(name), telemetry, rows, inbox, tolerance)
        fetcher.close()
        writer.close()
        segments.close()


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--rows", type=int, default=20, help="new rows in a turn")
    parser.add_argument("--codec", default="native")
    options = parsed(parser, turns=20)
    count = options.turns * options.rows
    rows, noise = empty_rows(SPEC, 0, count), np.random.default_rng(1)
    for array in rows.full.values():
        array[...] = noise.standard_normal(array.shape, np.float32)
    ids = tokens(noise.integers(0, 50_000, count).tolist())
    results: dict[str, object] = {}
    with ExitStack() as open_ones:
        scratch = Path(open_ones.enter_context(tempfile.TemporaryDirectory()))
        benches = {
            name: open_ones.enter_context(bench(scratch / name, options.codec, rows))
            for name in NAMES
        }
        for name, one in benches.items():
            _talk(one, ids, name, options.rows)
        # One after another in each round, so that a busy neighbour disturbs all of them.
        times = [[one.restore() for one in benches.values()] for _ in range(ROUNDS)]
        seconds = dict(zip(NAMES, map(median, zip(*times, strict=True)), strict=True))
        for name, one in benches.items():
            results[name] = _told(one, seconds[name])
    for name in NAMES[:2]:
        ratio = seconds[name] / seconds["one turn"]
        results[f"restore, {name} / one turn"] = round(ratio, 3)
    write_results("compaction", results, options.quick)


def _talk(one: Bench, ids: "Tokens[int]", name: str, rows: int) -> None:
    if name == "one turn":
        one.turn(ids, (*range(SEGMENT_ROWS, len(ids), SEGMENT_ROWS), len(ids)), merge=False)
        return
    for stop in range(rows, len(ids) + 1, rows):
        one.turn(ids[:stop], (stop - rows // 2, stop), merge=name == "merged")


def _told(one: Bench, seconds: float) -> dict[str, float]:
    again = sum(nbytes for _, nbytes in one.telemetry.compactions)
    return {
        "segments": len(one.path().steps),
        "restore seconds": round(seconds, 4),
        "bytes written again / bytes of rows": round(again / one.telemetry.bytes_stored, 2),
        "longest call on the engine thread, ms": round(1000 * one.stall, 2),
    }


if __name__ == "__main__":
    main()
