"""The store itself: a row a segment, a checksum over all of it, one lock around one connection."""

import json
import sqlite3
import threading
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

from attrs import define, field

from agentcache.domain.errors import SegmentCorrupt, SegmentMissing, SegmentUnusable, StoreFull
from agentcache.domain.segment import Segment
from agentcache.domain.tokens import to_bytes
from agentcache.ports.payload import Payload, Tensor
from agentcache.ports.segment_store import require_match

QUARANTINE_BYTES = 256 << 20
_SCHEMA = """
    CREATE TABLE IF NOT EXISTS segment (key BLOB PRIMARY KEY, head TEXT, body BLOB, digest BLOB);
    CREATE TABLE IF NOT EXISTS quarantine (
        number INTEGER PRIMARY KEY, key BLOB, head TEXT, body BLOB);
"""
_ITEM_BYTES = {"F32": 4, "I32": 4, "F16": 2, "BF16": 2, "U16": 2, "I8": 1, "U8": 1}
_SIZE = "length(CAST(head AS BLOB)) + length(body)"


@define(eq=False)
class OneFileStore:
    """Implements `agentcache.ports.segment_store.SegmentStore` in one SQLite file."""

    _db: sqlite3.Connection
    _quarantine_bytes: int
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    @classmethod
    def open(cls, path: Path, quarantine_bytes: int = QUARANTINE_BYTES) -> "OneFileStore":
        """The store in the file `path`, made if it is not there, for its owner alone."""
        path.touch(0o600)
        db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;" + _SCHEMA)
        return cls(db, quarantine_bytes)

    def put(self, segment: Segment, payload: Payload) -> int:
        """Keep `payload` durably: one statement is one transaction."""
        require_match(segment, payload)
        head, body = _head(segment, payload), _body(payload)
        row = (segment.key, head, body, _digest(head, body))
        try:
            self._run("INSERT OR REPLACE INTO segment VALUES (?, ?, ?, ?)", row)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise StoreFull(len(body)) from error
            raise OSError(str(error)) from error
        return len(head.encode()) + len(body)

    def read(self, segment: Segment) -> Payload:
        """The payload of `segment`, verified."""
        try:
            rows = self._run("SELECT head, body, digest FROM segment WHERE key = ?", (segment.key,))
        except sqlite3.Error as error:
            raise SegmentUnusable(segment.key, str(error)) from error
        if not rows:
            raise SegmentMissing(segment.key, "there is no such row")
        head, body, digest = rows[0]
        if _digest(head, body) != digest:
            raise SegmentCorrupt(segment.key, "its checksum is wrong")
        payload = _payload(head, body)
        if head != _head(segment, payload):
            raise SegmentCorrupt(segment.key, "it is of another segment")
        return payload

    def delete(self, key: bytes) -> None:
        """Remove the payload; no error when there is none."""
        self._run("DELETE FROM segment WHERE key = ?", (key,))

    def quarantine(self, key: bytes) -> None:
        """Set the payload aside, and let the oldest ones go that are too many."""
        self._run(
            "INSERT INTO quarantine (key, head, body) "
            "SELECT key, head, body FROM segment WHERE key = ?",
            (key,),
        )
        self.delete(key)
        while self._bytes("quarantine") > self._quarantine_bytes:
            self._run("DELETE FROM quarantine WHERE number = (SELECT min(number) FROM quarantine)")

    def sweep(self, known: Iterable[bytes]) -> int:
        """Remove what is not in `known`; half-written rows there are none."""
        keys = {bytes(key) for (key,) in self._run("SELECT key FROM segment")}
        lost = keys - set(known)
        for key in lost:
            self.delete(key)
        return len(lost)

    def nbytes(self) -> int:
        """Bytes of all payloads, quarantined ones included."""
        return self._bytes("segment") + self._bytes("quarantine")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _bytes(self, table: str) -> int:
        return int(self._run(f"SELECT coalesce(sum({_SIZE}), 0) FROM {table}")[0][0])

    def _run(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple]:  # type: ignore[type-arg]
        with self._lock:
            return self._db.execute(statement, values).fetchall()


def _head(segment: Segment, payload: Payload) -> str:
    """Whose rows these are, and how the body is cut up into tensors."""
    tensors = [(name, one.dtype, one.shape) for name, one in sorted(payload.tensors.items())]
    lineage = [segment.root.hex(), (segment.parent or b"").hex(), segment.start]
    ids = blake2b(to_bytes(segment.ids)).hexdigest()
    return json.dumps([lineage, ids, segment.nbytes, payload.codec, payload.rows, tensors])


def _body(payload: Payload) -> bytes:
    return b"".join(bytes(one.data) for _, one in sorted(payload.tensors.items()))


def _digest(head: str, body: bytes) -> bytes:
    return blake2b(head.encode() + b"\0" + body, digest_size=32).digest()


def _payload(head: str, body: bytes) -> Payload:
    *_, codec, rows, described = json.loads(head)
    tensors, at, data = {}, 0, memoryview(body)
    for name, dtype, shape in described:
        count = _ITEM_BYTES[dtype]
        for extent in shape:
            count *= extent
        tensors[name] = Tensor(dtype, tuple(shape), data[at : at + count])
        at += count
    return Payload(codec, rows, tensors)
