"""The header of a segment file: what safetensors asks for, and what names the segment.

By the safetensors format a file is eight bytes with the length of the header (little-endian), the
header (JSON, padded with spaces), and the tensors without gaps. The checksum in the metadata covers
all of it: it is the xxh3_128 of the header, with zeros where the checksum goes, followed by the
xxh3_128 digests of the tensors' blocks of at most BLOCK bytes, so that threads can share the work.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from math import prod

import msgspec
from attrs import frozen
from xxhash import xxh3_128_digest, xxh3_128_hexdigest

from agentcache.domain.segment import FORMAT_VERSION, Segment
from agentcache.ports.payload import Payload, Tensor

BLOCK = 1 << 20
MAX_HEADER = 1 << 20
ITEM_BYTES = {"F32": 4, "I32": 4, "F16": 2, "BF16": 2, "U8": 1}
_BLANK = "0" * 32
_MAX_AXES = 8


@frozen
class TensorPlace:
    """Where the tensor `name` lies: bytes [start, stop) after the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def blocks(self) -> Iterator[tuple[int, int]]:
        """The pieces that are hashed by themselves, as [start, stop)."""
        edges = [*range(self.start, self.stop, BLOCK), self.stop]
        return pairwise(edges)


@frozen
class Header:
    """A header that holds together by itself; whose it is, and the checksum, are not verified."""

    raw: bytes
    metadata: dict[str, str]
    places: tuple[TensorPlace, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.places[-1].stop if self.places else 0

    @property
    def codec(self) -> str:
        """The codec that the file says its tensors are encoded with."""
        return self.metadata.get("codec", "")

    def problem(self, segment: Segment) -> str | None:
        """Why this is not the header of `segment`, or None."""
        found = {name: value for name, value in self.metadata.items() if name != "checksum"}
        wanted = _metadata(segment, self.codec)
        if found.get("format") != wanted["format"]:
            return f"format {found.get('format')}, not {wanted['format']}"
        if found != wanted:
            return f"holds {found}, not {wanted}"
        if self.nbytes != segment.nbytes:
            return f"{self.nbytes} bytes of tensors, not {segment.nbytes}"
        return None

    def agrees(self, digests: Iterable[bytes]) -> bool:
        """Whether the checksum is that of the header and of blocks with these digests."""
        checksum = self.metadata.get("checksum", "")
        blank = self.raw.replace(_quoted(checksum), _quoted(_BLANK), 1)
        return _checksum(blank, digests) == checksum


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def build(segment: Segment, payload: Payload) -> tuple[bytes, list[Tensor]]:
    """The header, its length before it, and the tensors in the order in which they follow."""
    names = sorted(payload.tensors, key=lambda name: (-_item(payload.tensors[name]), name))
    tensors = [payload.tensors[name] for name in names]
    metadata = _metadata(segment, payload.codec) | {"checksum": _BLANK}
    fields: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for name, tensor in zip(names, tensors, strict=True):
        end = offset + tensor.data.nbytes
        fields[name] = _Entry(tensor.dtype, tensor.shape, (offset, end))
        offset = end
    text = msgspec.json.encode(fields)
    blank = text + b" " * (-len(text) % 8)
    if len(blank) > MAX_HEADER:
        raise ValueError(f"a header of {len(blank)} bytes is longer than {MAX_HEADER}")
    checksum = _checksum(blank, _digests(tensors))
    raw = blank.replace(_quoted(_BLANK), _quoted(checksum), 1)
    return len(raw).to_bytes(8, "little") + raw, tensors


def parse(raw: bytes) -> Header:
    """Read a header. Raises ValueError unless every tensor has its place and its size is right."""
    try:
        fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(fields.pop("__metadata__", b"{}"), type=dict[str, str])
        entries = {name: msgspec.json.decode(one, type=_Entry) for name, one in fields.items()}
    except RecursionError as error:
        raise ValueError("the header is nested too deeply") from error
    places = [
        TensorPlace(name, entry.dtype, entry.shape, *entry.data_offsets)
        for name, entry in entries.items()
    ]
    places.sort(key=lambda place: (place.start, place.stop))
    offset = 0
    for place in places:
        _require_whole(place, offset)
        offset = place.stop
    return Header(raw, metadata, tuple(places))


def _require_whole(place: TensorPlace, offset: int) -> None:
    if len(place.shape) > _MAX_AXES or min(place.shape, default=0) < 0:
        raise ValueError(f"tensor {place.name!r} cannot be of shape {place.shape[:_MAX_AXES]}")
    if place.dtype not in ITEM_BYTES:
        raise ValueError(f"tensor {place.name!r} is of dtype {place.dtype!r}")
    size = prod(place.shape) * ITEM_BYTES[place.dtype]
    if (place.start, place.stop) != (offset, offset + size):
        raise ValueError(f"tensor {place.name!r} is not where it should be")


def _metadata(segment: Segment, codec: str) -> dict[str, str]:
    return {
        "format": f"agentcache-{FORMAT_VERSION}",
        "root": segment.root.hex(),
        "key": segment.key.hex(),
        "parent": segment.origin.hex() if segment.origin else "",
        "start": str(segment.start),
        "stop": str(segment.stop),
        "codec": codec,
        "layout": "row,layer,head*dim",
    }


def _digests(tensors: Iterable[Tensor]) -> Iterator[bytes]:
    for tensor in tensors:
        for start in range(0, tensor.data.nbytes, BLOCK):
            yield xxh3_128_digest(tensor.data[start : start + BLOCK])


def _checksum(blank: bytes, digests: Iterable[bytes]) -> str:
    return xxh3_128_hexdigest(blank + b"".join(digests))


def _quoted(checksum: str) -> bytes:
    return b'"checksum":"' + checksum.encode() + b'"'


def _item(tensor: Tensor) -> int:
    return ITEM_BYTES[tensor.dtype]
