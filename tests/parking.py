"""Sequences of an engine in segments: kept as the keeper does, restored as the fetcher does."""

import threading
from collections.abc import Sequence
from itertools import pairwise

from attrs import define, field

from agentcache.adapters.codecs.native import NativeCodec
from agentcache.adapters.memory.segment_store import MemorySegmentStore
from agentcache.domain.path import Step
from agentcache.domain.plan import PrefillChunk
from agentcache.domain.segment import Segment
from agentcache.domain.spec import ITEM_BYTES, CacheSpec
from agentcache.domain.tokens import tokens
from agentcache.fetcher import Fetched, Fetcher
from agentcache.ports.codec import Codec
from agentcache.ports.payload import Payload
from agentcache.ports.segment_store import SegmentStore
from agentcache.testing.driving import Driver

HISTORY = [13 * n % 250 + 3 for n in range(45)]
SUFFIX = [5 * n % 250 + 3 for n in range(9)]
STEPS = 12


@define(eq=False)
class Parking:
    """Keeps one sequence.

    `segments` follow each other from the root to `stop`; those that are not `warm` are read from
    the store.
    """

    driver: Driver
    store: SegmentStore = field(factory=MemorySegmentStore)
    codec: Codec = field(factory=NativeCodec)
    warm: dict[bytes, Payload] = field(factory=dict)
    segments: list[Segment] = field(factory=list)

    @property
    def stop(self) -> int:
        return self.segments[-1].stop if self.segments else 0

    def keep(self, sequence: int, ids: Sequence[int]) -> None:
        """Keep what is new of a sequence that has run `ids`."""
        engine, start = self.driver.engine, self.stop
        rows = engine.export(sequence, start, len(ids))
        payload = self.codec.encode(engine.card.spec, rows)
        parent = self.segments[-1].key if self.segments else None
        new = tokens(ids[start:])
        self.segments.append(Segment.following(b"root", parent, start, new, payload.nbytes))
        self.warm[self.segments[-1].key] = payload

    def restore(self, sequence: int, stop: int, capacity: int = 128) -> None:
        """A new sequence of the first `stop` rows."""
        engine = self.driver.engine
        steps = tuple(Step(one, min(one.stop, stop)) for one in self.segments if one.start < stop)
        fetcher = Fetcher(engine.card.spec, self.store)
        found: list[Fetched] = []
        arrived = threading.Event()

        def done(fetched: Fetched) -> None:
            found.append(fetched)
            arrived.set()

        rows = engine.start(sequence, capacity, stop)
        fetcher.fetch(self.codec, steps, self.warm, rows, done)
        assert arrived.wait(60)
        fetcher.close()
        assert not found[0].failed
        engine.adopt(sequence, stop)

    def run(self, sequence: int, ends: Sequence[int]) -> None:
        """Prefill HISTORY up to the last of `ends`, and keep it at each of them."""
        self.driver.engine.start(sequence, 128)
        for start, stop in pairwise((0, *ends)):
            part = tokens(HISTORY[start:stop])
            assert not self.driver.step(PrefillChunk(sequence, start, part)).failed
            self.keep(sequence, HISTORY[:stop])

    def know(self, ends: Sequence[int]) -> None:
        """Take for granted that HISTORY was kept up to each of `ends`, by whomever."""
        spec = self.driver.engine.card.spec
        for start, stop in pairwise((0, *ends)):
            parent = self.segments[-1].key if self.segments else None
            new, nbytes = tokens(HISTORY[start:stop]), native_bytes(spec, stop - start)
            self.segments.append(Segment.following(b"root", parent, start, new, nbytes))

    def store_all(self) -> None:
        """Put every segment into the store, and leave none in RAM."""
        for segment in self.segments:
            self.store.put(segment, self.warm.pop(segment.key))


def native_bytes(spec: CacheSpec, rows: int) -> int:
    """What a segment of so many rows takes, by the arithmetic of the design."""
    held = 0
    for layer in spec.layers:
        counted = rows if layer.window is None else min(layer.window, rows)
        held += counted * layer.row_items * ITEM_BYTES[spec.dtype]
        held += sum(array.nbytes for array in layer.state)
    return held
