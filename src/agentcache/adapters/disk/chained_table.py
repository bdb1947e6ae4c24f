"""Rows in order that belong to a session, of which a commit writes only those that are new."""

import sqlite3
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any

from attrs import frozen

_DIGEST_BYTES = 16
Row = tuple[Any, ...]  # of str and bytes


@frozen
class ChainedTable:
    """The table `name`: for every session the rows 0, 1, ... of `columns`.

    Each row has the digest of all rows up to it: equal digests mean equal beginnings.
    """

    name: str
    columns: tuple[str, ...]

    def write(self, db: sqlite3.Connection, session: int, rows: Sequence[Row]) -> None:
        """Make the stored rows of `session` those given, leaving their common beginning alone."""
        digests = list(_chain(rows))
        stored = self._count(db, session)
        same = self._common(db, session, digests[:stored])
        if same < stored:
            db.execute(
                f"DELETE FROM {self.name} WHERE session = ? AND position >= ?", (session, same)
            )
        names = ("session", "position", "digest", *self.columns)
        db.executemany(
            f"INSERT INTO {self.name} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})",
            ((session, at, digests[at], *rows[at]) for at in range(same, len(rows))),
        )

    def read(self, db: sqlite3.Connection, session: int) -> list[Row]:
        """The rows of `session` up to the first that is not what was written."""
        found = db.execute(
            f"SELECT digest, {', '.join(self.columns)} FROM {self.name}"
            " WHERE session = ? ORDER BY position",
            (session,),
        ).fetchall()
        rows: list[Row] = [row[1:] for row in found]
        wrong = (at for at, digest in enumerate(_chain(rows)) if digest != found[at][0])
        return rows[: next(wrong, len(rows))]

    def _count(self, db: sqlite3.Connection, session: int) -> int:
        """How many rows are stored: their positions are 0, 1, ..."""
        (last,) = db.execute(
            f"SELECT max(position) FROM {self.name} WHERE session = ?", (session,)
        ).fetchone()
        return 0 if last is None else int(last) + 1

    def _common(self, db: sqlite3.Connection, session: int, digests: Sequence[bytes]) -> int:
        """How many leading rows are stored as they are, in as many look-ups as the log of that."""

        def differs(position: int) -> bool:
            found = db.execute(
                f"SELECT digest FROM {self.name} WHERE session = ? AND position = ?",
                (session, position),
            ).fetchone()
            return found is None or found[0] != digests[position]

        return bisect_left(range(len(digests)), True, key=differs)


def _chain(rows: Iterable[Row]) -> Iterator[bytes]:
    """For every row a digest of all that it and those before it hold."""
    last = b""
    for row in rows:
        digest = blake2b(last, digest_size=_DIGEST_BYTES)
        for value in row:
            part = value.encode() if isinstance(value, str) else value
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        last = digest.digest()
        yield last
