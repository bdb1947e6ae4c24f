"""The catalogue of a home in SQLite: the only place where something becomes true."""

import sqlite3
from collections.abc import Iterable
from pathlib import Path

from attrs import define, field

from agentcache.adapters.disk import message_table, span_table, trace_blob
from agentcache.adapters.disk.database import SALT_BYTES, connect, damaged, told, transaction
from agentcache.adapters.disk.reserve import Reserve
from agentcache.adapters.disk.texts import from_blob, to_blob
from agentcache.domain.errors import CatalogueConflict, HomeError, StoreFull
from agentcache.domain.segment import Segment
from agentcache.domain.session import Cursor, Session, SessionKey, Usage
from agentcache.domain.tokens import from_bytes, to_bytes
from agentcache.ports.session_store import Catalogue, Commit

_SESSION = (
    "tenant", "root", "name", "segment", "row", "tools_digest", "parent", "pinned", "created",
    "used", "generation", "expires", "hits", "prompt", "cached", "trace",
)  # fmt: skip
_PUT = f"""
    INSERT INTO session ({", ".join(_SESSION)}) VALUES ({", ".join("?" * len(_SESSION))})
    ON CONFLICT DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _SESSION[3:])}
    RETURNING id"""
_ADD = """
    INSERT INTO segment (key, root, parent, start, nbytes, ids, follows)
    VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET root = excluded.root, parent = excluded.parent,
        start = excluded.start, nbytes = excluded.nbytes, ids = excluded.ids,
        follows = excluded.follows"""
# Row `row` of segment `key` under `root`: the last of its rows has the number of its stop.
_HAS_ROW = """
    SELECT 1 FROM segment
    WHERE key = ?1 AND root = ?2 AND start < ?3 AND ?3 <= start + length(ids) / 4"""
_DANGLING = """
    SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM segment WHERE key = ?1) AND (
        EXISTS (SELECT 1 FROM segment WHERE parent = ?1)
        OR EXISTS (SELECT 1 FROM session WHERE segment = ?1))"""


@define(eq=False)
class SqliteSessionStore:
    """A SessionStore in the SQLite file `path`."""

    path: Path
    _db: sqlite3.Connection | None = field(repr=False)
    _reserve: Reserve = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> "SqliteSessionStore":
        """The catalogue at `path`, made if it is not there. Raises HomeError."""
        db = connect(path)
        reserve = Reserve(path.with_suffix(".reserve"))
        reserve.fill()
        return cls(path, db, reserve)

    def load(self) -> Catalogue:
        """Everything that was committed, as far as keys and digests vouch for it."""
        db = self._open()
        try:
            with told(self.path):
                segments = _segments(db)
                return Catalogue(tuple(segments.values()), tuple(_sessions(db, segments)))
        except OSError as error:
            raise HomeError(str(self.path.parent), str(error)) from error
        except (ValueError, TypeError, AttributeError) as error:  # values of other types
            raise damaged(self.path, str(error)) from error

    def commit(self, change: Commit) -> None:
        """Make the whole change durable, or none of it."""
        db = self._open()
        try:
            _commit(db, self.path, change)
        except StoreFull:
            # What only makes room must be possible on a full disk, or it stays full for ever.
            if len(change.drop) <= len(change.add) or not self._reserve.release():
                raise
            _commit(db, self.path, change)
        else:
            self._reserve.fill()

    def salt(self) -> bytes:
        """The home's random secret."""
        with told(self.path):
            row = self._open().execute("SELECT salt FROM home").fetchone()
        if row is None or len(row[0]) != SALT_BYTES:
            raise damaged(self.path, "it has lost its secret")
        return bytes(row[0])

    def close(self) -> None:
        """Close the file; its log is folded into it."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            raise ValueError("the catalogue is closed")
        return self._db


def _commit(db: sqlite3.Connection, path: Path, change: Commit) -> None:
    with transaction(db, path, _weight(change)):
        _remove(db, change)
        for segment in change.add:
            _add(db, segment)
        for session in change.put:
            _put(db, session)
        _check(db, change)


def _remove(db: sqlite3.Connection, change: Commit) -> None:
    db.executemany("DELETE FROM segment WHERE key = ?", ((key,) for key in change.drop))
    db.executemany(
        "DELETE FROM session WHERE tenant = ? AND root = ? AND name = ?",
        (_key_values(key) for key in change.forget),
    )


def _add(db: sqlite3.Connection, segment: Segment) -> None:
    db.execute(
        _ADD,
        (
            segment.key,
            segment.root,
            segment.parent,
            segment.start,
            segment.nbytes,
            to_bytes(segment.ids),
            segment.follows,
        ),
    )


def _put(db: sqlite3.Connection, session: Session) -> None:
    values = (
        *_key_values(session.key),
        session.cursor.key if session.cursor else None,
        session.cursor.row if session.cursor else None,
        session.tools_digest,
        None if session.parent is None else to_blob(session.parent),
        session.pinned,
        session.created,
        session.used,
        session.generation,
        session.expires,
        session.usage.hits,
        session.usage.prompt,
        session.usage.cached,
        trace_blob.to_blob(session.trace),
    )
    (number,) = db.execute(_PUT, values).fetchone()
    span_table.write(db, number, session.spans)
    message_table.write(db, number, session.messages, session.tools)


def _check(db: sqlite3.Connection, change: Commit) -> None:
    """Every reference that the change made or broke, as things are after it."""
    for segment in change.add:
        if segment.parent is not None:
            _need_row(db, segment.parent, segment.root, segment.start)
    for session in change.put:
        if session.cursor is not None:
            _need_row(db, session.cursor.key, session.key.root, session.cursor.row)
    for key in change.drop:
        _need_unused(db, key)


def _need_row(db: sqlite3.Connection, key: bytes, root: bytes, row: int) -> None:
    if db.execute(_HAS_ROW, (key, root, row)).fetchone() is None:
        raise CatalogueConflict(key)


def _need_unused(db: sqlite3.Connection, key: bytes) -> None:
    if db.execute(_DANGLING, (key,)).fetchone():
        raise CatalogueConflict(key)


def _segments(db: sqlite3.Connection) -> dict[bytes, Segment]:
    """The segments that are what their keys say, after parents that are; a parent starts first."""
    sound: dict[bytes, Segment] = {}
    for key, root, parent, start, nbytes, ids, follows in db.execute(
        "SELECT key, root, parent, start, nbytes, ids, follows FROM segment ORDER BY start, key"
    ):
        segment = Segment(key, root, parent, start, from_bytes(ids), nbytes, follows)
        has_place = start == 0 if parent is None else _has_row(sound, root, Cursor(parent, start))
        if has_place and segment.is_sound:
            sound[key] = segment
    return sound


def _sessions(db: sqlite3.Connection, segments: dict[bytes, Segment]) -> Iterable[Session]:
    """The sessions; one whose cursor stands at no sound segment has none."""
    rows = db.execute(f"SELECT id, {', '.join(_SESSION)} FROM session ORDER BY id")
    for number, tenant, root, name, segment, row, tools, parent, pinned, *rest in rows:
        created, used, generation, expires, *usage, trace = rest
        cursor = None if segment is None else Cursor(segment, row)
        yield Session(
            SessionKey(from_blob(tenant), root, from_blob(name)),
            span_table.read(db, number),
            cursor if cursor and _has_row(segments, root, cursor) else None,
            tools,
            None if parent is None else from_blob(parent),
            bool(pinned),
            created,
            used,
            generation,
            *message_table.read(db, number),
            expires,
            Usage(*usage),
            trace_blob.from_blob(trace),
        )


def _has_row(segments: dict[bytes, Segment], root: bytes, cursor: Cursor) -> bool:
    found = segments.get(cursor.key)
    return found is not None and found.root == root and found.start < cursor.row <= found.stop


def _key_values(key: SessionKey) -> tuple[bytes, bytes, bytes]:
    return to_blob(key.tenant), key.root, to_blob(key.name)


def _weight(change: Commit) -> int:
    """About how many bytes the change takes, for whoever has to make room."""
    spans = (span for session in change.put for span in session.spans)
    texts = sum(len(span.text) + 4 * len(span.ids) for span in spans)
    texts += sum(len(message.content) for session in change.put for message in session.messages)
    return texts + sum(4 * len(segment) for segment in change.add)
