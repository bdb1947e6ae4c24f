"""Folders that appear whole or not at all, however many processes make them and are killed."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = ".lock."
_PARTIAL = ".partial."


class Staging:
    """The folders of `root`, each built by one process at a time.

    A build happens in a `.partial.<name>.*` folder beside its goal while `.lock.<name>` is held, so
    a partial folder whose lock is free belongs to a process that is no more.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.mkdir(mode=0o700, exist_ok=True)

    @contextmanager
    def exclusive(self, name: str, on_wait: Callable[[], None]) -> Iterator[None]:
        """Be the only one, in all processes and threads, that builds or removes `name`.

        `on_wait` is called once before waiting for another one.
        """
        descriptor = self._open_lock(name)
        try:
            if not _try_lock(descriptor):
                on_wait()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def building(self, name: str) -> Iterator[Path]:
        """An empty folder to build `name` in, which takes its place when the block ends well.

        Needs `exclusive(name)`. Subfolders are scratch: only files become part of the result.
        """
        partial = self._partial(name)
        try:
            yield partial
            _drop_subfolders(partial)
            _sync(partial)
            self.remove(name)
            partial.rename(self._root / name)
            _sync_one(self._root)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def remove(self, name: str) -> None:
        """Delete the folder `name`, if any: whole at one moment, gone at the next.

        Needs `exclusive(name)`.
        """
        goal = self._root / name
        if goal.exists():
            grave = self._partial(name)
            goal.rename(grave / "old")
            shutil.rmtree(grave, ignore_errors=True)

    def sweep(self) -> None:
        """Delete what processes that were killed left behind."""
        for partial in self._root.glob(f"{_PARTIAL}*"):
            name = partial.name.removeprefix(_PARTIAL).rpartition(".")[0]
            descriptor = self._open_lock(name)
            try:
                if _try_lock(descriptor):
                    shutil.rmtree(partial, ignore_errors=True)
            finally:
                os.close(descriptor)

    def _open_lock(self, name: str) -> int:
        return os.open(self._root / f"{_LOCK}{name}", os.O_RDWR | os.O_CREAT, 0o600)

    def _partial(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{_PARTIAL}{name}.", dir=self._root))


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _drop_subfolders(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        path.chmod(0o600)
        _sync_one(path)
    _sync_one(folder)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
