"""The directory that holds everything: made, checked, and owned by one process at a time."""

import os
from pathlib import Path
from types import TracebackType

from attrs import define, field

from agentcache.adapters.disk.files import (
    FOLDER_MODE,
    leftovers,
    make_folder,
    remove,
    sync_folder,
    write_durably,
)
from agentcache.adapters.disk.lock import HomeLock, Owner, current_owner
from agentcache.domain.errors import HomeError, HomeLocked

FORMAT = 1
_LOCK = "lock"
_FORMAT = "format"
_LONGEST_FORMAT = 20


@define(eq=False)
class Home:
    """An open home. It is this process's until `close`, or until the process ends, however."""

    path: Path
    _lock: HomeLock = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> "Home":
        """Open `path`, made if it is not there, readable by its owner alone.

        Raises HomeLocked when another process owns it, HomeError when it cannot be used.
        """
        path = path.expanduser().absolute()
        try:
            _make(path)
            lock = HomeLock.take(path / _LOCK)
        except OSError as error:
            raise _unusable(path, error) from error
        if lock is None:
            raise _locked(path)
        try:
            _check_format(path)
            home = cls(path, lock)
            make_folder(home.models)
            sync_folder(path)  # its last owner may have been killed before it could
        except OSError as error:
            lock.release()
            raise _unusable(path, error) from error
        except BaseException:
            lock.release()
            raise
        return home

    @property
    def segments(self) -> Path:
        """The folder of the segment files."""
        return self.path / "segments"

    @property
    def quarantine(self) -> Path:
        """The folder of corrupt segment files."""
        return self.path / "quarantine"

    @property
    def catalogue(self) -> Path:
        """The catalogue's file."""
        return self.path / "catalogue.sqlite3"

    @property
    def models(self) -> Path:
        """The folder of converted models."""
        return self.path / "models"

    def announce(self, address: str) -> None:
        """Tell others at which `address` this process serves."""
        self._lock.announce(address)

    def free_bytes(self) -> int:
        """Bytes that may still be written on the home's file system."""
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    def close(self) -> None:
        """Give the home up."""
        self._lock.release()

    def __enter__(self) -> "Home":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def owner(path: Path) -> Owner | None:
    """Who owns the home at `path` now, or None."""
    return current_owner(path.expanduser().absolute() / _LOCK)


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    make_folder(path)
    if path.stat().st_mode & 0o777 != FOLDER_MODE:
        path.chmod(FOLDER_MODE)


def _check_format(path: Path) -> None:
    try:
        found = int(_beginning(path / _FORMAT))
    except FileNotFoundError:
        for left in leftovers(path / _FORMAT):
            remove(left)
        write_durably(path / _FORMAT, [f"{FORMAT}\n".encode()])
        return
    except ValueError:
        raise HomeError(
            str(path), f"its file {_FORMAT!r} holds no number", "Choose another directory"
        ) from None
    if found != FORMAT:
        raise HomeError(
            str(path),
            f"it has format {found}, this agentcache knows {FORMAT}",
            "Use the agentcache that made it, or another home",
        )


def _beginning(path: Path) -> bytes:
    """The first bytes of a file, whatever somebody may have put there: a pipe, terabytes."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(fd, _LONGEST_FORMAT)
    finally:
        os.close(fd)


def _locked(path: Path) -> HomeLocked:
    holder = owner(path)
    told = str(holder) if holder else "another process"
    remedy = "Stop it, talk to it, or use another home"
    return HomeLocked(str(path), f"it is in use by {told}", remedy, owner=told)


def _unusable(path: Path, error: OSError) -> HomeError:
    return HomeError(
        str(path),
        f"it cannot be used: {error.strerror or error}",
        "Give a directory that you may write to (--home, AGENTCACHE_HOME)",
    )
