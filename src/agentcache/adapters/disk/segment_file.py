"""One segment in one safetensors file: written durably, read and verified in one pass."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from attrs import frozen
from xxhash import xxh3_128_digest

from agentcache.adapters.disk.files import write_durably
from agentcache.adapters.disk.segment_header import MAX_HEADER, Header, build, parse
from agentcache.domain.errors import SegmentCorrupt, SegmentMissing, SegmentUnusable
from agentcache.domain.segment import Segment
from agentcache.mapped_memory import MappedMemory
from agentcache.ports.payload import Payload, Tensor

_ABSENT = {errno.ENOENT, errno.ENOTDIR}
_BAD = {errno.ELOOP, errno.EISDIR, errno.EIO, errno.ENXIO, errno.EMLINK}
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SHARE = 8 << 20
_PLAIN = MappedMemory.plain()


@frozen
class Helpers:
    """`count` threads of `pool` that help to read files of more than a few MB."""

    pool: Executor
    count: int


def write_segment(path: Path, segment: Segment, payload: Payload) -> int:
    """Write `payload` to `path`, durably and wholly or not at all; returns the file's size."""
    head, tensors = build(segment, payload)
    write_durably(path, [head, *(tensor.data for tensor in tensors)])
    return len(head) + payload.nbytes


def read_segment(
    path: Path,
    segment: Segment,
    helpers: Helpers | None = None,
    memory: MappedMemory | None = None,
) -> Payload:
    """Read `path` into one buffer of `memory`, every byte and every claim of it verified.

    Raises SegmentMissing, SegmentCorrupt, or SegmentUnusable when it cannot be read just now.
    """
    with _told(segment):
        fd = os.open(path, _OPEN)
        try:
            header = _read_header(fd, segment)
            data = (memory or _PLAIN).empty((header.nbytes,), np.dtype(np.uint8)).data
            digests = _read_blocks(fd, header, data, helpers)
        finally:
            os.close(fd)
    if not header.agrees(digests):
        raise SegmentCorrupt(segment.key, "the checksum does not agree")
    tensors = {
        place.name: Tensor(place.dtype, place.shape, data[place.start : place.stop].toreadonly())
        for place in header.places
    }
    return Payload(header.codec, len(segment), tensors)


def _read_header(fd: int, segment: Segment) -> Header:
    """The header, after which nothing is left to doubt but the bytes themselves."""
    if not segment.is_sound:
        raise SegmentCorrupt(segment.key, "its key is not that of its tokens")
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise SegmentCorrupt(segment.key, "not a regular file")
    length = int.from_bytes(os.pread(fd, 8, 0), "little")
    if not 0 < length <= min(MAX_HEADER, status.st_size - 8):
        raise SegmentCorrupt(segment.key, f"a header of {length} bytes")
    try:
        header = parse(os.pread(fd, length, 8))
    except ValueError as error:
        raise SegmentCorrupt(segment.key, f"the header does not add up: {error}") from error
    if status.st_size != 8 + length + header.nbytes:
        raise SegmentCorrupt(segment.key, f"a file of {status.st_size} bytes")
    if problem := header.problem(segment):
        raise SegmentCorrupt(segment.key, problem)
    return header


def _read_blocks(fd: int, header: Header, data: memoryview, helpers: Helpers | None) -> list[bytes]:
    """Fill `data` block by block, each hashed while it is in the core's cache."""
    blocks = [block for place in header.places for block in place.blocks()]
    offset = 8 + len(header.raw)

    def read(share: list[tuple[int, int]]) -> list[bytes]:
        return [_read_block(fd, data[start:stop], offset + start) for start, stop in share]

    if helpers is None or len(data) < _SHARE:
        return read(blocks)
    return _shared(read, blocks, helpers)


def _shared(
    read: Callable[[list[tuple[int, int]]], list[bytes]],
    blocks: list[tuple[int, int]],
    helpers: Helpers,
) -> list[bytes]:
    """Read `blocks` with the calling thread and all helpers, each a run of neighbours."""
    size = -(-len(blocks) // (helpers.count + 1))
    shares = [blocks[start : start + size] for start in range(0, len(blocks), size)]
    others = [helpers.pool.submit(read, share) for share in shares[1:]]
    try:
        digests = read(shares[0])
    finally:
        # They use the file and the buffer: neither may go before they are done.
        results = [other.exception() for other in others]
    for problem in results:
        if problem is not None:
            raise problem
    return [*digests, *(digest for other in others for digest in other.result())]


def _read_block(fd: int, block: memoryview, offset: int) -> bytes:
    filled = 0
    while filled < block.nbytes:
        count = os.preadv(fd, [block[filled:]], offset + filled)
        if not count:
            raise OSError(errno.EIO, "the file became shorter while it was read")
        filled += count
    return xxh3_128_digest(block)


@contextmanager
def _told(segment: Segment) -> Iterator[None]:
    """Turn what the system says into what a store may say."""
    try:
        yield
    except OSError as error:
        if error.errno in _ABSENT:
            raise SegmentMissing(segment.key) from error
        kind = SegmentCorrupt if error.errno in _BAD else SegmentUnusable
        raise kind(segment.key, f"cannot be read: {error.strerror}") from error
