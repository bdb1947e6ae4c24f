"""The SQLite file of a home: opened, upgraded, and every error of it told in our words."""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_bytes

from agentcache.adapters.disk.files import create, sync_folder
from agentcache.adapters.disk.schema import APPLICATION, PRAGMAS, TABLES, UPGRADES, VERSION
from agentcache.domain.errors import CommitInDoubt, HomeError, StoreFull

SALT_BYTES = 32
# Only ENOSPC becomes SQLITE_FULL; a quota or a file size limit is told as a failed write.
_NO_ROOM = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE}
_TROUBLE = {
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_BUSY: errno.EBUSY,
    sqlite3.SQLITE_LOCKED: errno.EBUSY,
}


def connect(path: Path) -> sqlite3.Connection:
    """Open the catalogue at `path`, made if it is not there.

    Raises HomeError when it is damaged, made by something else, or cannot be opened.
    """
    try:
        with told(path):
            _touch(path)
            db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
            try:
                _prepare(db, path)
            except BaseException:
                db.close()
                raise
            return db
    except (OSError, StoreFull, CommitInDoubt) as error:
        raise HomeError(str(path.parent), f"the catalogue cannot be opened: {error}") from error


@contextmanager
def transaction(db: sqlite3.Connection, path: Path, needed: int) -> Iterator[None]:
    """All that is done inside, durably, or nothing of it.

    Raises StoreFull, OSError, HomeError; CommitInDoubt when it is not known which of the two.
    """
    with told(path, needed):
        version = _number(db, "user_version")
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            _roll_back(db)
            raise
        try:
            db.execute("COMMIT")
        except BaseException as error:
            _roll_back(db)
            # It may stand in the log all the same, and be found there: one that says nothing new
            # takes its place.
            try:
                db.execute(f"PRAGMA user_version = {version}")
            except sqlite3.Error:
                cause = _in_our_words(error, path, needed)
                raise CommitInDoubt(cause) from error
            raise


def _roll_back(db: sqlite3.Connection) -> None:
    if db.in_transaction:  # SQLite has rolled back by itself after some errors
        with suppress(sqlite3.Error):
            db.execute("ROLLBACK")


@contextmanager
def told(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn errors of SQLite into StoreFull, OSError, or HomeError when the file is at fault."""
    try:
        yield
    except sqlite3.Error as error:
        raise _in_our_words(error, path, needed) from error
    except UnicodeDecodeError as error:  # SQLite quotes damaged bytes in its message
        raise damaged(path, "its schema cannot be read") from error


def _in_our_words(error: BaseException, path: Path, needed: int) -> Exception:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    if code in _NO_ROOM:
        return StoreFull(needed)
    if number := _TROUBLE.get(code & 0xFF):
        return OSError(number, f"catalogue: {error}", str(path))
    return damaged(path, str(error))


def damaged(path: Path, problem: str) -> HomeError:
    """The error for a catalogue that cannot be understood."""
    return HomeError(
        str(path.parent),
        f"the catalogue is damaged ({problem})",
        f"Move {path.name} aside to start with an empty memory, or put a backup in its place",
    )


def _touch(path: Path) -> None:
    """Make the file here: SQLite gives its log the same mode."""
    try:
        os.close(create(path))
    except FileExistsError:
        return
    sync_folder(path.parent)


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    db.execute(PRAGMAS[0])
    version = _number(db, "user_version")
    if version > VERSION:
        raise HomeError(
            str(path.parent),
            f"the catalogue has schema {version}, this agentcache knows {VERSION}",
            "Use the newer agentcache that made it, or another home",
        )
    made = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if made and (_number(db, "application_id") != APPLICATION or version < 1):
        raise damaged(path, "it was not made by agentcache")
    for pragma in PRAGMAS[1:]:
        db.execute(pragma).fetchall()
    if not made:
        _make(db, path)
    elif version < VERSION:
        _upgrade(db, path, version)


def _make(db: sqlite3.Connection, path: Path) -> None:
    with transaction(db, path, 0):
        for statement in TABLES:
            db.execute(statement)
        db.execute("INSERT INTO home VALUES (?)", (token_bytes(SALT_BYTES),))
        db.execute(f"PRAGMA application_id = {APPLICATION}")
        db.execute(f"PRAGMA user_version = {VERSION}")


def _upgrade(db: sqlite3.Connection, path: Path, version: int) -> None:
    """All steps from `version` to ours, or none: a crash leaves the catalogue as it was."""
    with transaction(db, path, 0):
        for step in range(version + 1, VERSION + 1):
            for statement in UPGRADES[step]:
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {VERSION}")


def _number(db: sqlite3.Connection, pragma: str) -> int:
    return int(db.execute(f"PRAGMA {pragma}").fetchone()[0])
