"""One agent in one file: an uncompressed tar of a manifest, its segments, and their checksums.

    manifest.json                 see `portable_manifest`
    segments/000000.safetensors   see `segment_header`; keys are those under the file's own root
    checksums.json                the SHA-256 of each member before it

There is exactly one way to write an agent: what differs from it by a bit is refused.
"""

import json
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

from attrs import define, frozen
from xxhash import xxh3_128_digest

from agentcache.adapters.disk import portable_manifest
from agentcache.adapters.disk.files import TEMPORARY, create, room_for, sync, sync_folder
from agentcache.adapters.disk.segment_header import MAX_HEADER, build, parse
from agentcache.domain.errors import InvalidRequest
from agentcache.domain.segment import Segment
from agentcache.ports.payload import Payload, Tensor
from agentcache.ports.portable import Portable

MAX_MANIFEST = 256 << 20
_BLOCK = 512
_PIECE = 1 << 20
_END = bytes(2 * _BLOCK)
_MANIFEST, _CHECKSUMS = "manifest.json", "checksums.json"


@frozen
class PortableTars:
    """Portable files as tars."""

    def write(self, path: Path, portable: Portable, read: Callable[[int], Payload]) -> int:
        """Write `path` wholly or not at all, for its owner alone; returns its bytes."""
        temporary = path.with_name(f".{path.name[:100]}.{token_hex(8)}{TEMPORARY}")
        total = sum(one.nbytes for one in portable.segments)
        try:
            with room_for(total), os.fdopen(create(temporary), "wb") as file:
                _write_all(_Tar(file, {}), portable, read)
                file.flush()
                sync(file.fileno())
                nbytes = file.tell()
            temporary.rename(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)
        return nbytes

    @contextmanager
    def open(self, path: Path) -> Iterator["PortableTar"]:
        """The file, every byte of it verified."""
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            with _told():
                found = _opened(file)
            yield found


@define(eq=False)
class PortableTar:
    """A tar that was read once, and did not differ from what an export writes."""

    portable: Portable
    _file: BinaryIO
    _places: tuple[int, ...]
    _digests: tuple[str, ...]

    def read(self, index: int) -> Payload:
        """The payload of the segment `index`, verified once more."""
        with _told():
            self._file.seek(self._places[index])
            tar = _Tar(self._file, {})
            payload = _payload(tar, index, self.portable.segments[index])
            _require(tar.digests[_name(index)] == self._digests[index], "it changes while read")
        return payload


@define(eq=False)
class _Tar:
    """Members one after another, and the digests of those that went through."""

    file: BinaryIO
    digests: dict[str, str]

    def write(self, name: str, parts: "list[bytes | memoryview]") -> None:
        size = sum(memoryview(part).nbytes for part in parts)
        self.file.write(_header(name, size))
        digest = sha256()
        for part in parts:
            digest.update(part)
            self.file.write(part)
        self.file.write(bytes(-size % _BLOCK))
        self.digests[name] = digest.hexdigest()

    def read(self, name: str, most: int) -> memoryview:
        """The member that must come now, of at most `most` bytes."""
        head = self._exactly(_BLOCK)
        try:
            size = tarfile.TarInfo.frombuf(head, "ascii", "strict").size
        except (tarfile.TarError, ValueError) as error:
            raise ValueError(f"there is no {name} in it: {error}") from None
        _require(
            size >= 0 and head == _header(name, size), f"there is no {name} where it should be"
        )
        _require(size <= most, f"its {name} is of {size} bytes, {most} at most")
        left = os.fstat(self.file.fileno()).st_size - self.file.tell()
        _require(size <= left, f"it ends within {name}")
        data = self._exactly(size)
        _require(not any(self._exactly(-size % _BLOCK)), f"something is hidden after {name}")
        self.digests[name] = sha256(data).hexdigest()
        return memoryview(data)

    def _exactly(self, size: int) -> bytes:
        data = self.file.read(size)
        _require(len(data) == size, "it ends too early")
        return data


def _write_all(tar: _Tar, portable: Portable, read: Callable[[int], Payload]) -> None:
    tar.write(_MANIFEST, [portable_manifest.encode(portable)])
    for index, segment in enumerate(portable.segments):
        head, tensors = build(segment, read(index))
        tar.write(_name(index), [head, *(tensor.data for tensor in tensors)])
    tar.write(_CHECKSUMS, [_checksums(tar)])
    tar.file.write(_END)


def _opened(file: BinaryIO) -> PortableTar:
    tar = _Tar(file, {})
    manifest = bytes(tar.read(_MANIFEST, MAX_MANIFEST))
    portable = portable_manifest.decode(manifest)
    _require(portable_manifest.encode(portable) == manifest, "its manifest is not written as it is")
    places: list[int] = []
    for index, segment in enumerate(portable.segments):
        places.append(file.tell())
        payload = _payload(tar, index, segment)
        _require(payload.codec == portable.origin.codec, f"{_name(index)} has another codec")
    digests = tuple(tar.digests[_name(index)] for index in range(len(places)))
    wanted = _checksums(tar)
    _require(tar.read(_CHECKSUMS, len(wanted)) == wanted, "its checksums do not agree")
    _require(file.read(len(_END) + 1) == _END, "it does not end where it should")
    return PortableTar(portable, file, tuple(places), digests)


def _payload(tar: _Tar, index: int, segment: Segment) -> Payload:
    """The member of `segment`, all of whose claims are verified."""
    data = tar.read(_name(index), 8 + MAX_HEADER + segment.nbytes)
    length = int.from_bytes(data[:8], "little")
    _require(0 < length <= min(MAX_HEADER, len(data) - 8), f"{_name(index)} has no header")
    header, rows = parse(bytes(data[8 : 8 + length])), data[8 + length :]
    problem = header.problem(segment)
    _require(problem is None, f"{_name(index)} {problem}")
    _require(len(rows) == header.nbytes, f"{_name(index)} is of another size")
    blocks = [block for place in header.places for block in place.blocks()]
    _require(
        header.agrees([xxh3_128_digest(rows[start:stop]) for start, stop in blocks]),
        f"the checksum of {_name(index)} does not agree",
    )
    tensors = {
        place.name: Tensor(place.dtype, place.shape, rows[place.start : place.stop])
        for place in header.places
    }
    payload = Payload(header.codec, len(segment), tensors)
    _require(
        build(segment, payload)[0] == data[: 8 + length], f"{_name(index)} is written strangely"
    )
    return payload


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (ValueError, OverflowError, MemoryError) as error:
        problem = f"the file cannot be imported: {error}; nothing was taken from it"
        raise InvalidRequest(problem, "file") from None


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    return member.tobuf(tarfile.GNU_FORMAT)


def _checksums(tar: _Tar) -> bytes:
    return json.dumps(tar.digests, separators=(",", ":")).encode()


def _name(index: int) -> str:
    return f"segments/{index:06d}.safetensors"


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)
