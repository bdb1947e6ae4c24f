"""The spans of sessions, of which a commit writes only those that are new."""

import sqlite3
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b

from agentcache.domain.spans import Span, SpanKind
from agentcache.domain.tokens import from_bytes, to_bytes

_DIGEST_BYTES = 16
_Row = tuple[str, bytes, bytes, bytes]  # kind, role, text, ids


def write(db: sqlite3.Connection, session: int, spans: Sequence[Span]) -> None:
    """Make the stored spans of `session` those given, leaving their common beginning alone."""
    rows = [_row(span) for span in spans]
    digests = list(_chain(rows))
    stored = _count(db, session)
    same = _common(db, session, digests[:stored])
    if same < stored:
        db.execute("DELETE FROM span WHERE session = ? AND position >= ?", (session, same))
    db.executemany(
        "INSERT INTO span (session, position, digest, kind, role, text, ids)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        ((session, at, digests[at], *rows[at]) for at in range(same, len(rows))),
    )


def read(db: sqlite3.Connection, session: int) -> tuple[Span, ...]:
    """The spans of `session` up to the first that is not what was written."""
    found = db.execute(
        "SELECT digest, kind, role, text, ids FROM span WHERE session = ? ORDER BY position",
        (session,),
    ).fetchall()
    rows: list[_Row] = [row[1:] for row in found]
    wrong = (at for at, digest in enumerate(_chain(rows)) if digest != found[at][0])
    return tuple(
        Span(SpanKind(kind), from_blob(role), from_blob(text), from_bytes(ids))
        for kind, role, text, ids in rows[: next(wrong, len(rows))]
    )


def to_blob(text: str) -> bytes:
    """UTF-8 that any `str` survives, lone surrogates among them."""
    return text.encode("utf-8", "surrogatepass")


def from_blob(data: bytes) -> str:
    """The inverse of `to_blob`."""
    return data.decode("utf-8", "surrogatepass")


def _count(db: sqlite3.Connection, session: int) -> int:
    """How many spans are stored: their positions are 0, 1, ..."""
    (last,) = db.execute("SELECT max(position) FROM span WHERE session = ?", (session,)).fetchone()
    return 0 if last is None else int(last) + 1


def _common(db: sqlite3.Connection, session: int, digests: Sequence[bytes]) -> int:
    """How many leading spans are stored as they are, in as many look-ups as the log of that."""

    def differs(position: int) -> bool:
        found = db.execute(
            "SELECT digest FROM span WHERE session = ? AND position = ?", (session, position)
        ).fetchone()
        return found is None or found[0] != digests[position]

    return bisect_left(range(len(digests)), True, key=differs)


def _row(span: Span) -> _Row:
    return span.kind.value, to_blob(span.role), to_blob(span.text), to_bytes(span.ids)


def _chain(rows: Iterable[_Row]) -> Iterator[bytes]:
    """For every span a digest of all that it and those before it hold."""
    last = b""
    for kind, *parts in rows:
        digest = blake2b(last, digest_size=_DIGEST_BYTES)
        for part in (kind.encode(), *parts):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        last = digest.digest()
        yield last
