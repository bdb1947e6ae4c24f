"""Segments on disk: one safetensors file each, under the first two digits of its key."""

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from attrs import define, field

from agentcache.adapters.disk.files import (
    TEMPORARY,
    leftovers,
    make_folder,
    remove,
    room_for,
    size,
    sync_folder,
)
from agentcache.adapters.disk.quarantine import Quarantine
from agentcache.adapters.disk.segment_file import Helpers, read_segment, write_segment
from agentcache.domain.errors import HomeError, IntegrityError
from agentcache.domain.segment import Segment
from agentcache.mapped_memory import MappedMemory
from agentcache.ports.payload import Payload
from agentcache.ports.segment_store import require_match

SUFFIX = ".safetensors"
QUARANTINE_BYTES = 256 << 20
_SHARD = re.compile(r"[0-9a-f]{2}")
_NAME = re.compile(r"[0-9a-f]{64}" + re.escape(SUFFIX))
_UNFINISHED = re.compile(rf"\.{_NAME.pattern}\.[0-9a-f]+{re.escape(TEMPORARY)}")


@define(eq=False)
class DiskSegmentStore:
    """A SegmentStore in `folder`, which one process owns (`Home`).

    `helpers` threads help with reading a large file, into memory that one of them has made ready
    since something was put. Bytes are counted when the store is opened, leftovers among them, and
    with every change from then on.
    """

    folder: Path
    _quarantine: Quarantine
    _bytes: int
    _helpers: Helpers | None = field(default=None)
    _memory: MappedMemory = field(factory=MappedMemory.plain)

    @classmethod
    def open(
        cls,
        folder: Path,
        quarantine: Path,
        quarantine_bytes: int = QUARANTINE_BYTES,
        helpers: int = 1,
        memory: MappedMemory | None = None,
    ) -> "DiskSegmentStore":
        """The store in `folder`, made if it is not there; what is read lies in `memory`.

        Raises HomeError.
        """
        try:
            make_folder(folder)
            make_folder(quarantine)
            sync_folder(folder)  # who made the folders in it may have been killed before it could
            taken = sum(size(path) for path in _files(folder))
            aside = Quarantine.open(quarantine, quarantine_bytes)
        except OSError as error:
            raise HomeError(
                str(folder.parent),
                f"its segments cannot be used: {error.strerror or error}",
                "Give a directory that you may write to (--home, AGENTCACHE_HOME)",
            ) from error
        threads = Helpers(ThreadPoolExecutor(helpers, "segment-read"), helpers) if helpers else None
        store = cls(folder, aside, taken, threads, memory or MappedMemory.plain())
        store._make_ready()
        return store

    def put(self, segment: Segment, payload: Payload) -> int:
        """Keep `payload` durably; return its file's size."""
        require_match(segment, payload)
        path = self._path(segment.key)
        before = _taken(path)
        with room_for(payload.nbytes):
            make_folder(path.parent)
            try:
                return write_segment(path, segment, payload)
            finally:
                self._bytes += _taken(path) - before
                self._make_ready()

    def read(self, segment: Segment) -> Payload:
        """The payload of `segment`, verified."""
        return read_segment(self._path(segment.key), segment, self._helpers, self._memory)

    def delete(self, key: bytes) -> None:
        """Remove the payload's file; no error when there is none."""
        self._remove(self._path(key))

    def quarantine(self, key: bytes) -> None:
        """Move the payload's file aside; no error when there is none."""
        path = self._path(key)
        taken = size(path)
        if self._quarantine.take(path, taken):
            self._bytes -= taken

    def sweep(self, known: Iterable[bytes]) -> int:
        """Remove files of unknown keys and files that were never finished."""
        wanted = set(known)
        lost = [path for path in _files(self.folder) if _key(path) not in wanted]
        for path in lost:
            self._remove(path)
        return len(lost)

    def nbytes(self) -> int:
        """Bytes of all files, quarantined ones included."""
        return self._bytes + self._quarantine.nbytes

    def check_integrity(self) -> None:
        """Raise IntegrityError unless the count of bytes is that of the files."""
        taken = sum(size(path) for path in _files(self.folder))
        if taken != self._bytes:
            raise IntegrityError(f"{self._bytes} bytes counted, {taken} there")
        self._quarantine.check_integrity()

    def close(self) -> None:
        """Stop the threads that help with reading."""
        if self._helpers:
            self._helpers.pool.shutdown()

    def _make_ready(self) -> None:
        """A turn is over: a moment to make memory ready for the next who come back."""
        self._memory.settle()
        if self._helpers and self._memory.reserve:
            self._helpers.pool.submit(_prepare, self._memory, self._helpers.pool)

    def _path(self, key: bytes) -> Path:
        name = key.hex()
        return self.folder / name[:2] / f"{name}{SUFFIX}"

    def _remove(self, path: Path) -> None:
        taken = size(path)
        if remove(path):
            self._bytes -= taken


def _prepare(memory: MappedMemory, pool: Executor) -> None:
    """A step at a time, so that nobody who reads waits for the pool."""
    if memory.prepare():
        with suppress(RuntimeError):  # the store is closed
            pool.submit(_prepare, memory, pool)


def _files(folder: Path) -> Iterator[Path]:
    """What this store made, finished or not; anything else is left alone."""
    for shard in folder.iterdir():
        if _SHARD.fullmatch(shard.name) and shard.is_dir():
            for path in shard.iterdir():
                if _NAME.fullmatch(path.name) or _UNFINISHED.fullmatch(path.name):
                    yield path


def _taken(path: Path) -> int:
    """Bytes of a segment's file, and of what could not be removed when it was not finished."""
    return size(path) + sum(size(left) for left in leftovers(path))


def _key(path: Path) -> bytes | None:
    """The key of a finished file in its right place."""
    name = path.name[:64]
    found = _NAME.fullmatch(path.name) and path.parent.name == name[:2]
    return bytes.fromhex(name) if found else None
