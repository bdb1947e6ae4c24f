"""The system calls by which Python code changes files, as far as they concern a medium."""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from tests.faults.medium import File, Folder, Medium

_NAMES = (
    "open", "close", "write", "pwrite", "fsync", "rename", "unlink", "mkdir", "rmdir", "chmod",
    "fchmod", "pread", "preadv",
)  # fmt: skip
_REAL: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in _NAMES}
_FCNTL = fcntl.fcntl
_FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)


@contextmanager
def python_writes_to(medium: Medium) -> Iterator[None]:
    """Lead the calls of `os` that concern the home of `medium` over it."""
    calls = _Calls(medium)
    with pytest.MonkeyPatch.context() as patch:
        for name in _NAMES:
            patch.setattr(os, name, getattr(calls, name))
        patch.setattr(fcntl, "fcntl", calls.fcntl)
        yield


@define(eq=False)
class _Calls:
    """Each does what the call of its name does. Nothing is really synced: nothing really fails."""

    medium: Medium
    _open: dict[int, File | Folder] = field(factory=dict)

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if dir_fd is not None or not self._concerns(path):
            return int(_REAL["open"](path, flags, mode, dir_fd=dir_fd))
        found = Path(path)
        is_new = bool(flags & os.O_CREAT) and not os.path.lexists(found)
        if is_new:
            self.medium.strike("create")
        fd: int = _REAL["open"](path, flags, mode)
        if is_new:
            self.medium.folder(found.parent).change({found.name: File()})
        self._open[fd] = self.medium.node(found)
        return fd

    def close(self, fd: int) -> None:
        self._open.pop(fd, None)
        _REAL["close"](fd)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        if fd not in self._open:
            return int(_REAL["write"](fd, data))
        return self._write(fd, bytes(data), os.lseek(fd, 0, os.SEEK_CUR))

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        if fd not in self._open:
            return int(_REAL["pwrite"](fd, data, offset))
        return self._write(fd, bytes(data), offset)

    def fsync(self, fd: int) -> None:
        node = self._open.get(fd)
        if node is None:
            _REAL["fsync"](fd)
        else:
            self.medium.strike("sync" if isinstance(node, File) else "sync folder")
            node.sync()

    def fcntl(self, fd: Any, command: int, argument: Any = 0) -> Any:
        if command == _FULL_SYNC and fd in self._open:
            return self.fsync(fd)
        return _FCNTL(fd, command, argument)

    def rename(self, source: Any, target: Any, **folders: Any) -> None:
        if folders or not self._concerns(source):
            _REAL["rename"](source, target, **folders)
            return
        os.lstat(source)
        self.medium.strike("rename")
        _REAL["rename"](source, target)
        before, after = Path(source), Path(target)
        node = self.medium.node(before)
        if before.parent == after.parent:
            self.medium.folder(after.parent).change({before.name: None, after.name: node})
        else:
            self.medium.folder(after.parent).change({after.name: node})
            self.medium.folder(before.parent).change({before.name: None})

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        if dir_fd is not None or not self._concerns(path):
            _REAL["unlink"](path, dir_fd=dir_fd)
            return
        os.lstat(path)
        self.medium.strike("unlink")
        _REAL["unlink"](path)
        self.medium.folder(Path(path).parent).change({Path(path).name: None})

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        if dir_fd is not None or not self._concerns(path) or os.path.lexists(path):
            _REAL["mkdir"](path, mode, dir_fd=dir_fd)
            return
        self.medium.strike("mkdir")
        _REAL["mkdir"](path, mode)
        self.medium.folder(Path(path).parent).change({Path(path).name: Folder()})

    def rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        if dir_fd is not None or not self._concerns(path):
            _REAL["rmdir"](path, dir_fd=dir_fd)
            return
        self.medium.strike("rmdir")
        _REAL["rmdir"](path)
        self.medium.folder(Path(path).parent).change({Path(path).name: None})

    def chmod(self, path: Any, mode: int, **options: Any) -> None:
        if self._concerns(path):
            self.medium.strike("chmod")
        _REAL["chmod"](path, mode, **options)

    def fchmod(self, fd: int, mode: int) -> None:
        if fd in self._open:
            self.medium.strike("chmod")
        _REAL["fchmod"](fd, mode)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        if fd in self._open:
            self.medium.strike_read()
        read: bytes = _REAL["pread"](fd, length, offset)
        return read

    def preadv(self, fd: int, buffers: Sequence[Any], offset: int, flags: int = 0) -> int:
        if fd in self._open:
            self.medium.strike_read()
        read: int = _REAL["preadv"](fd, buffers, offset, flags)
        return read

    def _concerns(self, path: Any) -> bool:
        return not isinstance(path, int) and self.medium.holds(Path(os.fsdecode(path)))

    def _write(self, fd: int, data: bytes, offset: int) -> int:
        fault = self.medium.strike("write")
        if fault is not None:
            data = data[: -(-len(data) // 2)]
        written: int = _REAL["pwrite"](fd, data, offset)
        os.lseek(fd, offset + written, os.SEEK_SET)
        node = self._open[fd]
        assert isinstance(node, File)
        node.unsafe.append((offset, data[:written]))
        if fault is not None:
            self.medium.fail(fault)
        return written
