"""Rows by token ids, without an engine: for programs that run the model themselves.

The keeper, the fetcher and the store thread as they work for the engine; what they post is run by
whoever calls next, so nothing here needs a thread of its own.
"""

import threading
from collections.abc import Callable
from queue import SimpleQueue

from attrs import define, field, frozen

from agentcache.compactor import Compactor
from agentcache.disk_room import DiskRoom, boundless
from agentcache.domain.lineage import Lineage
from agentcache.domain.path import Match
from agentcache.domain.plan import Park
from agentcache.domain.registry import SessionRegistry
from agentcache.domain.request import Tier
from agentcache.domain.segment import root_key
from agentcache.domain.session import DEFAULT_TENANT
from agentcache.domain.spec import CacheSpec
from agentcache.domain.tokens import Tokens
from agentcache.fetcher import Fetched, Fetcher
from agentcache.keeper import Keeper
from agentcache.outbox import Outbox
from agentcache.ports.codec import Codec
from agentcache.ports.engine import RowSource
from agentcache.ports.rows import Rows
from agentcache.ports.segment_store import SegmentStore
from agentcache.ports.session_store import SessionStore
from agentcache.ports.telemetry import Telemetry
from agentcache.tiers import Tiers
from agentcache.writer import Writer

_CALLER = 0  # the one sequence that a caller ever exports from


@frozen
class Origin:
    """Whose rows these are: what computes them, and the tenant they are kept for.

    `digest` covers everything that changes their values, the program that computes them included.
    """

    digest: bytes
    spec: CacheSpec
    tenant: str = DEFAULT_TENANT
    epoch: int = 1


@frozen
class Stores:
    """Where rows are kept: encoded how, in which stores, in how many bytes of RAM and of disk.

    Of the `free_bytes` of the disk `disk_floor` stay free.
    """

    codec: Codec
    segments: SegmentStore
    sessions: SessionStore
    telemetry: Telemetry
    memory: int
    disk: int
    disk_floor: int = 0
    free_bytes: Callable[[], int] = boundless


@frozen
class Kept:
    """What became of rows that should be kept.

    `new` of them were encoded, the others were there. `durable` says whether all of them are in the
    home; None when nobody waited for that. `problem` says why they are not.
    """

    new: int
    durable: bool | None = None
    problem: str | None = None


@define(eq=False)
class PrefixStore:
    """Keeps the rows of token sequences and gives back those of the longest known prefix.

    What was kept piece by piece is put together, a step with each call and the rest in `flush` and
    `close`: see `Compactor`. Safe to call from any thread, one call at a time; every method raises
    ValueError after `close`.
    """

    root: bytes
    _codec: Codec
    _keeper: Keeper
    _fetcher: Fetcher
    _compactor: Compactor
    _posted: "SimpleQueue[Callable[[], None]]"
    _lock: threading.RLock = field(factory=threading.RLock, init=False)
    _closed: bool = field(default=False, init=False)

    @classmethod
    def open(cls, origin: Origin, stores: Stores) -> "PrefixStore":
        """Take in what the stores hold. Raises what they raise, and closes them then."""
        posted: SimpleQueue[Callable[[], None]] = SimpleQueue()
        writer = Writer(stores.segments, stores.sessions)
        catalogue, salt = writer.open()
        outbox = Outbox(Lineage(origin.spec), SessionRegistry(), writer, posted.put)
        tiers = Tiers(outbox, stores.telemetry, stores.memory)
        room = DiskRoom(tiers, stores.disk, stores.disk_floor, stores.free_bytes)
        keeper = Keeper(origin.spec, tiers, room)
        try:
            keeper.open(catalogue)
        except BaseException:
            writer.close()
            raise
        root = root_key(
            origin.digest,
            origin.spec.dtype,
            origin.epoch,
            stores.codec.name,
            origin.tenant,
            salt,
        )
        fetcher = Fetcher(origin.spec, stores.segments)
        compactor = Compactor(keeper, fetcher, lambda _root: stores.codec)
        return cls(root, stores.codec, keeper, fetcher, compactor, posted)

    @property
    def spec(self) -> CacheSpec:
        """The cache whose rows are kept."""
        return self._keeper.spec

    @property
    def memory_bytes(self) -> int:
        """Bytes of encoded rows in RAM."""
        with self._lock:
            return self._keeper.lineage.nbytes(Tier.WARM)

    @property
    def disk_bytes(self) -> int:
        """Bytes of encoded rows in the home, those of other models among them."""
        with self._lock:
            return self._keeper.room.cold_bytes

    def known(self, ids: "Tokens[int]") -> int:
        """How many rows `restore` would restore, if nothing turns out to be unusable."""
        with self._lock:
            self._catch_up()
            return self._match(ids).restore

    def restore(self, ids: "Tokens[int]", blank: Callable[[int], Rows]) -> int:
        """Fill in the rows of the longest known prefix that leaves one of `ids` to run.

        `blank(n)` makes arrays for the first n rows, and is called again when stored rows turn out
        to be unusable: only the last ones count. Returns how many rows they hold; 0 is a miss.
        """
        with self._lock:
            self._catch_up()
            while (path := self._match(ids)).restore:
                if self._read(path, blank(path.restore)):
                    return path.restore
            return 0

    def keep(self, ids: "Tokens[int]", source: RowSource, wait: bool = True) -> Kept:
        """Encode the rows of `ids` that are not known yet, and write them.

        With `wait` it returns when they are durable, or cannot be; without it they are written soon
        after. Raises what `source` and the codec raise; nothing was kept then.
        """
        with self._lock:
            self._catch_up()
            before = self._keeper.lineage.match(self.root, ids).length
            park = Park(_CALLER, self.root, ids, (len(ids),))
            path = self._keeper.keep(source, park, self._codec)
            durable = self._write(path, wait)
            self._keeper.tiers.trim()
            self._compactor.work(quiet=True)
            problem = self._keeper.read_only if durable is False else None
            return Kept(path.length - before, durable, problem)

    def flush(self) -> None:
        """Wait until nothing is left to be written, or to be put together."""
        with self._lock:
            self._catch_up()
            while self._keeper.is_writing:
                self._posted.get()()
                self._compactor.work(quiet=True)

    def close(self) -> None:
        """Write what is left to be written, and close the catalogue."""
        with self._lock:
            if self._closed:
                return
            try:
                self.flush()
            finally:
                self._closed = True
                self._keeper.outbox.writer.close()
                self._fetcher.close()

    def check_integrity(self) -> None:
        """Raise IntegrityError unless everything adds up."""
        with self._lock:
            self._keeper.tiers.check_integrity()
            self._keeper.room.check_integrity()
            self._keeper.lineage.check_integrity()

    def _write(self, path: Match, wait: bool) -> bool | None:
        """Have the path written; returns whether it is, None if nobody knows yet."""
        written: list[bool] = []

        def done(durable: bool) -> None:
            written.append(durable)
            if path.cursor is not None:
                self._compactor.visit(path.cursor.key)

        self._keeper.write(path, None, done)
        while wait and not written:
            self._posted.get()()
        return written[0] if written else None

    def _catch_up(self) -> None:
        if self._closed:
            raise ValueError("the prompt caches are closed: open them again")
        while not self._posted.empty():
            self._posted.get()()
        self._compactor.work(quiet=True)

    def _match(self, ids: "Tokens[int]") -> Match:
        return self._keeper.lineage.match(self.root, ids, max(len(ids) - 1, 0))

    def _read(self, path: Match, out: Rows) -> bool:
        found: SimpleQueue[Fetched] = SimpleQueue()
        self._keeper.lineage.touch(path.keys)
        self._fetcher.fetch(self._codec, path.restoring(), self._keeper.tiers.warm, out, found.put)
        fetched = found.get()
        self._keeper.tiers.promote(fetched.read)
        self._keeper.tiers.discard(fetched.failed)
        self._keeper.tiers.trim()
        return not fetched.failed
