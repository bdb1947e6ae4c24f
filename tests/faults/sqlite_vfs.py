"""What SQLite does to files, as far as it concerns a medium: a VFS that wraps SQLite's own.

Made with ctypes for the very library that Python's sqlite3 uses. The structures are those of
https://www.sqlite.org/c3ref/vfs.html and https://www.sqlite.org/c3ref/io_methods.html.
"""

import _sqlite3
import ctypes
import errno
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_void_p, pointer
from itertools import count
from pathlib import Path

from attrs import define, evolve, field

from tests.faults.medium import File, Medium

# A file keeps the pointer to its name, so names are not made Python's on their way.
_OPEN = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)
_DELETE = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
_MOVE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)  # xRead and xWrite
_TRUNCATE = CFUNCTYPE(c_int, c_void_p, c_int64)
_SYNC = CFUNCTYPE(c_int, c_void_p, c_int)
# SQLite wants the names of new logs and journals to be safe when these are synced first.
_IS_LOG = 0x00000800 | 0x00080000  # SQLITE_OPEN_MAIN_JOURNAL, SQLITE_OPEN_WAL
_CREATE = 0x00000004
_READ_FAILED = sqlite3.SQLITE_IOERR_READ
_WRITE_FAILED = sqlite3.SQLITE_IOERR_WRITE
_TRUNCATE_FAILED = sqlite3.SQLITE_IOERR_TRUNCATE
_SYNC_FAILED = sqlite3.SQLITE_IOERR_FSYNC
_DELETE_FAILED = sqlite3.SQLITE_IOERR_DELETE
_NO_SUCH_FILE = sqlite3.SQLITE_IOERR_DELETE_NOENT
_numbers = count()


class _Vfs(Structure):
    _fields_ = (
        ("version", c_int),
        ("file_bytes", c_int),
        ("longest_path", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        ("open", _OPEN),
        ("delete", _DELETE),
        ("others", c_void_p * 13),
    )


class _Methods(Structure):
    _fields_ = (
        ("version", c_int),
        ("close", c_void_p),
        ("read", _MOVE),
        ("write", _MOVE),
        ("truncate", _TRUNCATE),
        ("sync", _SYNC),
        ("others", c_void_p * 13),
    )


class _OpenFile(Structure):
    _fields_ = (("methods", POINTER(_Methods)),)


@contextmanager
def sqlite_writes_to(medium: Medium) -> Iterator[None]:
    """Lead what SQLite does to files below the home of `medium` over it.

    Connections that are opened inside must be closed inside.
    """
    library = _library()
    usual = library.sqlite3_vfs_find(None)
    wrapped = _Wrapped(medium, usual.contents)
    library.sqlite3_vfs_register(pointer(wrapped.vfs), 1)
    try:
        yield
    finally:
        library.sqlite3_vfs_unregister(pointer(wrapped.vfs))
        library.sqlite3_vfs_register(usual, 1)


def _library() -> ctypes.CDLL:
    """The library that Python's sqlite3 uses. Raises LookupError when it cannot be reached."""
    library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
    try:
        library.sqlite3_vfs_find.restype = POINTER(_Vfs)
        library.sqlite3_libversion.restype = c_char_p
        version = library.sqlite3_libversion().decode()
    except AttributeError:
        raise LookupError(
            "this Python hides its SQLite; take one that links to libsqlite3"
        ) from None
    assert version == sqlite3.sqlite_version
    return library


@define(eq=False)
class _Wrapped:
    """The VFS, and all that C code points to and Python would not keep otherwise."""

    medium: Medium
    usual: _Vfs
    vfs: _Vfs = field(init=False)
    _kept: list[object] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.vfs = _Vfs.from_buffer_copy(self.usual)
        self.vfs.name = f"medium-{next(_numbers)}".encode()
        self.vfs.open = _OPEN(self._open)
        self.vfs.delete = _DELETE(self._delete)

    def _open(
        self, vfs: int, name: int | None, file: int, flags: int, out_flags: int | None
    ) -> int:
        path = Path(ctypes.string_at(name).decode()) if name else None
        if path is None or not self.medium.holds(path):
            return int(self.usual.open(vfs, name, file, flags, out_flags))
        is_new = bool(flags & _CREATE) and not path.exists()

        def create() -> None:
            if is_new:
                self.medium.strike("create")

        if code := _told(create, sqlite3.SQLITE_CANTOPEN):
            _OpenFile.from_address(file).methods = None
            return code
        code = int(self.usual.open(vfs, name, file, flags, out_flags))
        if code == sqlite3.SQLITE_OK:
            if is_new:
                self.medium.folder(path.parent).change({path.name: File()})
            opened = _OpenFile.from_address(file)
            is_log = is_new and bool(flags & _IS_LOG)
            opened.methods = self._methods(opened.methods.contents, path, is_log)
        return code

    def _delete(self, vfs: int, name: bytes, sync: int) -> int:
        path = Path(name.decode())
        if not self.medium.holds(path):
            return int(self.usual.delete(vfs, name, sync))
        if not path.exists():
            return _NO_SUCH_FILE

        def delete() -> None:
            self.medium.strike("unlink")
            path.unlink()
            folder = self.medium.folder(path.parent)
            folder.change({path.name: None})
            if sync:
                self.medium.strike("sync folder")
                folder.sync()

        return _told(delete, _DELETE_FAILED)

    def _methods(self, usual: _Methods, path: Path, names_are_synced: bool) -> object:
        """The methods of the open file at `path`."""
        methods = _Methods.from_buffer_copy(usual)
        file = _WrappedFile(self.medium, path, usual, names_are_synced)
        methods.read = _MOVE(file.read)
        methods.write = _MOVE(file.write)
        methods.truncate = _TRUNCATE(file.truncate)
        methods.sync = _SYNC(file.sync)
        self._kept.append(methods)
        return pointer(methods)


@define(eq=False)
class _WrappedFile:
    """What SQLite does to one open file. Nothing is really synced: nothing really fails."""

    medium: Medium
    path: Path
    usual: _Methods
    folder_is_due: bool
    node: File = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.node = self.medium.file(self.path)

    def read(self, file: int, data: int, length: int, offset: int) -> int:
        code = _told(self.medium.strike_read, _READ_FAILED)
        return code or int(self.usual.read(file, data, length, offset))

    def write(self, file: int, data: int, length: int, offset: int) -> int:
        def write() -> None:
            fault = self.medium.strike("write")
            written = ctypes.string_at(data, length if fault is None else -(-length // 2))
            if self.usual.write(file, data, len(written), offset):
                raise OSError(errno.EIO, "SQLite could not really write")
            self.node.unsafe.append((offset, written))
            if fault is not None:  # SQLite goes on writing after a short write, and fails then
                self.medium.fail(evolve(fault, error=fault.error or errno.ENOSPC * fault.short))

        return _told(write, _WRITE_FAILED)

    def truncate(self, file: int, length: int) -> int:
        def truncate() -> None:
            self.medium.strike("truncate")
            if self.usual.truncate(file, length):
                raise OSError(errno.EIO, "SQLite could not really truncate")
            self.node.unsafe.append((length, None))

        return _told(truncate, _TRUNCATE_FAILED)

    def sync(self, _file: int, _flags: int) -> int:
        def sync() -> None:
            self.medium.strike("sync")
            self.node.sync()
            if self.folder_is_due:
                self.medium.strike("sync folder")
                self.medium.folder(self.path.parent).sync()
                self.folder_is_due = False

        return _told(sync, _SYNC_FAILED)


def _told(action: Callable[[], None], failed: int) -> int:
    """Do it; returns the code that SQLite gives to what came of it."""
    try:
        action()
    except OSError as error:
        return sqlite3.SQLITE_FULL if error.errno == errno.ENOSPC else failed
    return sqlite3.SQLITE_OK
