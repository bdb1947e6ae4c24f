"""Parts of a home and a model that fail when a test says so, and tell what they did."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from attrs import define, field

from agentcache.adapters.codecs import NativeCodec
from agentcache.adapters.memory.engine import MemoryEngine
from agentcache.adapters.memory.segment_store import MemorySegmentStore
from agentcache.adapters.memory.session_store import MemorySessionStore
from agentcache.domain.plan import StepPlan, StepResult
from agentcache.domain.segment import Segment
from agentcache.domain.spec import CacheSpec
from agentcache.ports.payload import Payload
from agentcache.ports.rows import Rows
from agentcache.ports.session_store import Catalogue, Commit


@define(eq=False)
class Frailty:
    """What is to go wrong: exceptions by method, raised one a call, in order."""

    _coming: dict[str, Iterator[Exception]] = field(factory=dict, init=False)

    def fail(self, method: str, problems: Exception | Iterable[Exception]) -> None:
        """Let the next calls of `method` raise `problems`, after those that it is to raise yet."""
        more = [problems] if isinstance(problems, Exception) else problems
        self._coming[method] = chain(self._coming.get(method, ()), more)

    def recover(self) -> None:
        """Let nothing go wrong any more."""
        self._coming.clear()

    def strike(self, method: str) -> None:
        problem = next(self._coming.get(method, iter(())), None)
        if problem is not None:
            raise problem


@define(eq=False)
class Disk(Frailty):
    """Both stores of a home. Whoever holds `writes` or `reads` keeps its threads waiting.

    `written` are the segments whose payloads were put, `orphans` those that could not be deleted.
    After `lose_power` nothing changes any more.
    """

    segments: MemorySegmentStore = field(factory=MemorySegmentStore)
    sessions: MemorySessionStore = field(factory=lambda: MemorySessionStore(salt=bytes(32)))
    writes: Any = field(factory=threading.RLock)
    reads: Any = field(factory=threading.RLock)
    written: list[Segment] = field(factory=list, init=False)
    orphans: set[bytes] = field(factory=set, init=False)
    commits: int = field(default=0, init=False)
    _has_power: bool = field(default=True, init=False)

    def lose_power(self) -> None:
        with self.writes:
            self._has_power = False

    def put(self, segment: Segment, payload: Payload) -> int:
        with self._changing("put"):
            taken = self.segments.put(segment, payload)
            self.written.append(segment)
            return taken

    def read(self, segment: Segment) -> Payload:
        with self.reads:
            self.strike("read")
            return self.segments.read(segment)

    def delete(self, key: bytes) -> None:
        self.orphans.add(key)
        with self._changing("delete"):
            self.segments.delete(key)
        self.orphans.discard(key)

    def quarantine(self, key: bytes) -> None:
        with self._changing("quarantine"):
            self.segments.quarantine(key)

    def sweep(self, known: Iterable[bytes]) -> int:
        with self._changing("sweep"):
            return self.segments.sweep(known)

    def nbytes(self) -> int:
        return self.segments.nbytes()

    def load(self) -> Catalogue:
        with self._changing("load"):
            return self.sessions.load()

    def commit(self, change: Commit) -> None:
        with self._changing("commit"):
            self.sessions.commit(change)
            self.commits += 1

    def salt(self) -> bytes:
        return self.sessions.salt()

    def close(self) -> None:
        self.sessions.close()

    @contextmanager
    def _changing(self, method: str) -> Iterator[None]:
        with self.writes:
            if not self._has_power:
                raise OSError("there is no power")
            self.strike(method)
            yield


@define(eq=False)
class FrailEngine(MemoryEngine):
    """Its calls fail as `frailty` says, and it rests as often as it has `chores`."""

    frailty: Frailty = field(factory=Frailty, init=False)
    chores: int = field(default=0, init=False)
    closed: bool = field(default=False, init=False)

    def start(self, sequence: int, capacity: int, restore: int = 0) -> Rows:
        self.frailty.strike("start")
        return super().start(sequence, capacity, restore)

    def adopt(self, sequence: int, length: int) -> None:
        self.frailty.strike("adopt")
        super().adopt(sequence, length)

    def grow(self, sequence: int, capacity: int) -> None:
        self.frailty.strike("grow")
        super().grow(sequence, capacity)

    def trim(self, sequence: int, length: int) -> None:
        self.frailty.strike("trim")
        super().trim(sequence, length)

    def submit(self, plan: StepPlan) -> None:
        self.frailty.strike("submit")
        super().submit(plan)

    def collect(self) -> StepResult:
        result = super().collect()
        self.frailty.strike("collect")
        return result

    def rest(self) -> bool:
        self.chores = max(0, self.chores - 1)
        return self.chores > 0

    def close(self) -> None:
        self.frailty.strike("close")
        self.closed = True
        super().close()

    def export(self, sequence: int, start: int, stop: int) -> Rows:
        self.frailty.strike("export")
        return super().export(sequence, start, stop)


@define(eq=False)
class CountingCodec(NativeCodec):
    """The lossless codec, which remembers the rows [start, stop) that it encoded.

    Whoever holds `reads` keeps those waiting who decode.
    """

    reads: Any = None
    encoded: list[tuple[int, int]] = field(factory=list, init=False)

    def encode(self, spec: CacheSpec, rows: Rows) -> Payload:
        self.encoded.append((rows.start, rows.stop))
        return super().encode(spec, rows)

    def join(self, spec: CacheSpec, parts: Sequence[tuple[Payload, int]]) -> Payload:
        with self.reads:
            return super().join(spec, parts)

    def decode(self, spec: CacheSpec, payload: Payload, out: Rows, first: int = 0) -> None:
        with self.reads:
            super().decode(spec, payload, out, first)


class OtherCodec(CountingCodec):
    """As lossless, but another one: neither can make anything of the other's rows."""

    name = "other"
