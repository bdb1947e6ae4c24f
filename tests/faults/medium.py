"""What a folder's files are, what of them would outlive a power cut, and when they shall fail.

The rules are those of POSIX and no kinder: what was written to a file is safe when the file was
synced, a name when its folder was. Until then each of these changes, by itself, may be there after
a power cut, or not; of a write also its first half alone. After kill -9 everything is there.
"""

import errno
import os
from pathlib import Path
from random import Random
from typing import TypeVar

from attrs import define, field, frozen

Change = tuple[int, bytes | None]  # bytes written at an offset; None: the file was cut there
Names = dict[str, "File | Folder | None"]  # what stands under these names from now on
_Any = TypeVar("_Any")


@frozen
class Fault:
    """What happens instead of a change: an error, or with `error` 0 the end of the process.

    A write has written `half` of its bytes before, and only that when it is `short`.
    """

    error: int = 0
    half: bool = False
    short: bool = False


@define(eq=False)
class File:
    """A file's content as it is safe, and the changes that are not."""

    safe: bytearray = field(factory=bytearray)
    unsafe: list[Change] = field(factory=list)

    def sync(self) -> None:
        for change in self.unsafe:
            _apply(self.safe, change)
        self.unsafe.clear()

    def after_power_cut(self, chance: Random) -> bytes:
        content = bytearray(self.safe)
        for offset, data in _survivors(self.unsafe, chance):
            torn = data is not None and chance.random() < 0.2
            _apply(content, (offset, data[: len(data) // 2] if torn and data else data))
        return bytes(content)


@define(eq=False)
class Folder:
    """What stands in a folder `now`, what is safe of it, and the changes that are not."""

    now: dict[str, "File | Folder"] = field(factory=dict)
    safe: dict[str, "File | Folder"] = field(factory=dict)
    unsafe: list[Names] = field(factory=list)

    @classmethod
    def of(cls, path: Path) -> "Folder":
        """What is at `path`, all of it safe."""
        names = {
            one.name: cls.of(one) if one.is_dir() else File(bytearray(one.read_bytes()))
            for one in path.iterdir()
        }
        return cls(names, dict(names))

    def change(self, names: Names) -> None:
        _rename(self.now, names)
        self.unsafe.append(names)

    def sync(self) -> None:
        self.safe = dict(self.now)
        self.unsafe.clear()

    def after_power_cut(self, chance: Random) -> dict[str, "File | Folder"]:
        names = dict(self.safe)
        for change in _survivors(self.unsafe, chance):
            _rename(names, change)
        return names


@define(eq=False)
class Medium:
    """The changes below `home`, counted as they are asked for.

    `faults` are by the number of the change that they strike. From one that ends the process on
    nothing changes any more and every call fails, until `revive`. `changes` says what each was.
    `struck` counts those that were since `recover`. `read_error` is what every reading fails with,
    unless it is 0.
    """

    home: Path
    root: Folder
    faults: dict[int, Fault] = field(factory=dict)
    changes: list[str] = field(factory=list)
    struck: int = 0
    read_error: int = 0
    is_alive: bool = True

    @classmethod
    def of(cls, home: Path) -> "Medium":
        """What is at `home`, a folder, all of it safe."""
        return cls(home, Folder.of(home))

    def plan(self, fault: Fault, after: int = 0, times: int = 1) -> None:
        """Let `times` changes be struck, after the next `after` ones."""
        first = len(self.changes) + after
        self.faults.update((number, fault) for number in range(first, first + times))

    def recover(self) -> None:
        """Plan no faults any more."""
        self.faults.clear()
        self.struck = 0
        self.read_error = 0

    def revive(self) -> None:
        """Let another process be started; what is not safe is so no more than before."""
        self.recover()
        self.is_alive = True

    def strike(self, change: str) -> Fault | None:
        """Count a change. Raises OSError when it fails; otherwise what is to be done of a write."""
        self._need_life()
        number = len(self.changes)
        self.changes.append(change)
        fault = self.faults.pop(number, None)
        self.struck += fault is not None
        if fault is None or (change == "write" and (fault.half or fault.short)):
            return fault
        self.fail(fault)
        return None

    def fail(self, fault: Fault) -> None:
        """Raise the error of `fault`, unless it has none because it only makes a write short."""
        if not fault.error and not fault.short:
            self.is_alive = False
            self._need_life()
        if fault.error:
            raise OSError(fault.error, os.strerror(fault.error))

    def strike_read(self) -> None:
        """Raises OSError when nothing can be read."""
        self._need_life()
        if self.read_error:
            raise OSError(self.read_error, os.strerror(self.read_error))

    def holds(self, path: Path) -> bool:
        """Whether `path` is below the home."""
        return path.is_relative_to(self.home)

    def folder(self, path: Path) -> Folder:
        """The folder at `path`."""
        node = self.node(path)
        assert isinstance(node, Folder), path
        return node

    def file(self, path: Path) -> File:
        """The file at `path`."""
        node = self.node(path)
        assert isinstance(node, File), path
        return node

    def node(self, path: Path) -> File | Folder:
        """What is at `path`, now."""
        node: File | Folder = self.root
        for part in path.relative_to(self.home).parts:
            assert isinstance(node, Folder), path
            node = node.now[part]
        return node

    def cut_power(self, chance: Random, target: Path) -> "Medium":
        """Make of `target` what the home may be after a power cut now; returns its medium."""
        _restore(self.root, chance, target)
        return Medium.of(target)

    def _need_life(self) -> None:
        if not self.is_alive:
            raise OSError(errno.EIO, "the process has ended")


def _restore(folder: Folder, chance: Random, target: Path) -> None:
    target.mkdir(0o700)
    for name, node in folder.after_power_cut(chance).items():
        if isinstance(node, Folder):
            _restore(node, chance, target / name)
        else:
            (target / name).write_bytes(node.after_power_cut(chance))


def _survivors(changes: list[_Any], chance: Random) -> list[_Any]:
    """None, all, or any of the changes, in their order."""
    share = chance.choice((0.0, 1.0, 0.5))
    return [change for change in changes if chance.random() < share]


def _apply(content: bytearray, change: Change) -> None:
    offset, data = change
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    if data is None:
        del content[offset:]
    else:
        content[offset : offset + len(data)] = data


def _rename(names: dict[str, "File | Folder"], change: Names) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node
