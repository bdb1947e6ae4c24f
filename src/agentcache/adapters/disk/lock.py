"""The lock of a home: held by the kernel for a process, so that it goes when the process does."""

import fcntl
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from attrs import define, field, frozen

from agentcache.adapters.disk.files import FILE_MODE

_NOTE_BYTES = 512
_ATTEMPTS = 1000
_OPEN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe in its place keeps nobody waiting


@frozen
class Owner:
    """The process that owns a home, and the address it serves at, if it does.

    `pid` is 0 in the moment between taking the lock and writing the note.
    """

    pid: int
    address: str | None = None

    def __str__(self) -> str:
        if not self.pid:
            return "another process"
        return f"process {self.pid}{f' at {self.address}' if self.address else ''}"


@define(eq=False)
class HomeLock:
    """An exclusive lock on a file, and in the file a note of who holds it."""

    _fd: int | None = field()

    @classmethod
    def take(cls, path: Path) -> "HomeLock | None":
        """The lock at `path`, or None when another holds it. Raises OSError."""
        fd = os.open(path, _OPEN | os.O_RDWR | os.O_CREAT, FILE_MODE)
        try:
            os.fchmod(fd, FILE_MODE)
            if not _lock(fd):
                os.close(fd)
                return None
            _write_note(fd, Owner(os.getpid()))
        except BaseException:
            with suppress(OSError):
                os.close(fd)
            raise
        return cls(fd)

    def announce(self, address: str) -> None:
        """Add `address` to the note."""
        if self._fd is not None:
            _write_note(self._fd, Owner(os.getpid(), address))

    def release(self) -> None:
        """Let go of the lock; no error when it is done already."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def current_owner(path: Path) -> Owner | None:
    """Who holds the lock at `path`, or None."""
    try:
        fd = os.open(path, _OPEN | os.O_RDONLY)
    except OSError:
        return None
    try:
        return _read_note(fd) if _is_owned(fd) else None
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    """Try to lock exclusively. Who only looks (`_is_owned`) is waited for, an owner is not."""
    for _ in range(_ATTEMPTS):
        if _try(fd, fcntl.LOCK_EX):
            return True
        if _is_owned(fd):
            return False
        time.sleep(0.001)
    return False


def _is_owned(fd: int) -> bool:
    """Whether an exclusive lock is held, seen from that a shared one is refused."""
    if not _try(fd, fcntl.LOCK_SH):
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def _try(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_note(fd: int, owner: Owner) -> None:
    """In one write of one size, so that no reader sees half of it."""
    note = json.dumps({"pid": owner.pid, "address": owner.address}).encode()
    if len(note) > _NOTE_BYTES:
        raise ValueError(f"an address of {len(owner.address or '')} characters")
    os.pwrite(fd, note.ljust(_NOTE_BYTES - 1) + b"\n", 0)


def _read_note(fd: int) -> Owner:
    try:
        note = json.loads(os.pread(fd, _NOTE_BYTES, 0))
        return Owner(int(note["pid"]), note["address"])
    except (ValueError, KeyError, TypeError):
        return Owner(0)
