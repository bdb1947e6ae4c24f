"""Files as the stores need them: for their owner alone, and whole or absent after a power cut."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from agentcache.domain.errors import StoreFull

FILE_MODE = 0o600
FOLDER_MODE = 0o700
TEMPORARY = ".tmp"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PIECE = 64 << 20


def write_durably(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write `parts` under a temporary name, sync, rename to `path`, sync the folder.

    Raises OSError; then nothing new is left behind, unless it was the last sync that failed.
    """
    temporary = path.with_name(f".{path.name}.{token_hex(8)}{TEMPORARY}")
    try:
        fd = create(temporary)
        try:
            for part in parts:
                _write(fd, memoryview(part))
            sync(fd)
        finally:
            os.close(fd)
        temporary.rename(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock file `path`, hold it for the block. It stays, so that all lock the same."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def leftovers(path: Path) -> Iterator[Path]:
    """What is left of writes to `path` that were neither finished nor undone."""
    return path.parent.glob(f".{path.name}.*{TEMPORARY}")


def create(path: Path) -> int:
    """A new file open for writing, readable by its owner alone whatever the umask is."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        os.fchmod(fd, FILE_MODE)
    except BaseException:
        os.close(fd)
        raise
    return fd


def make_folder(path: Path) -> None:
    """Make `path` unless it is there, for its owner alone, and sync the folder it is in.

    Raises OSError; then it is not there, so that its name will be synced by whoever makes it.
    """
    try:
        path.mkdir(FOLDER_MODE)
    except FileExistsError:
        return
    try:
        path.chmod(FOLDER_MODE)
        sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            path.rmdir()
        raise


def size(path: Path) -> int:
    """Bytes of the file itself (a link is not followed); 0 when it is not there."""
    try:
        return path.lstat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0


def remove(path: Path) -> bool:
    """Remove a file, or whatever else has its name; returns whether there was one."""
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (IsADirectoryError, PermissionError):  # which of the two is up to the system
        if not path.is_dir():
            raise
        shutil.rmtree(path)
    return True


def sync(fd: int) -> None:
    """Wait until the file is on the medium, not only in the cache of the drive."""
    full: int | None = getattr(fcntl, "F_FULLFSYNC", None)  # macOS, where fsync stops at the drive
    if full is not None:
        with suppress(OSError):  # not every file system there has it
            fcntl.fcntl(fd, full)
            return
    os.fsync(fd)


def sync_folder(path: Path) -> None:
    """Wait until the names in `path` are on the medium."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(fd)
    finally:
        os.close(fd)


@contextmanager
def room_for(needed: int) -> Iterator[None]:
    """Turn the errors of a full disk, quota or file size limit into StoreFull."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise StoreFull(needed) from error
        raise


def _write(fd: int, data: memoryview) -> None:
    while data.nbytes:
        data = data[os.write(fd, data[:_PIECE]) :]
