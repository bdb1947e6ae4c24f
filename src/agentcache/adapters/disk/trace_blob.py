"""Traces as bytes: for each position how many tokens, then each token (u32) and its log (f32)."""

import struct

from agentcache.domain.trace import Top, Trace

_HEAD, _COUNT, _TOKEN = struct.Struct("<QB"), struct.Struct("<B"), struct.Struct("<If")
_MOST = 64  # positions that are read, whoever wrote them


def to_blob(trace: Trace | None) -> bytes | None:
    """The bytes of `trace`; None for none."""
    if trace is None:
        return None
    parts = [_HEAD.pack(trace.stop, len(trace.tops))]
    for top in trace.tops:
        parts += [_COUNT.pack(len(top)), *(_TOKEN.pack(*one) for one in top)]
    return b"".join(parts)


def from_blob(data: bytes | None) -> Trace | None:
    """The trace that these bytes are; None where they are none: then nothing is compared."""
    try:
        return None if data is None else _trace(data)
    except (struct.error, ValueError, TypeError):
        return None


def _trace(data: bytes) -> Trace:
    stop, positions = _HEAD.unpack_from(data)
    at, tops = _HEAD.size, list[Top]()
    for _ in range(min(positions, _MOST)):
        (count,) = _COUNT.unpack_from(data, at)
        end = at + _COUNT.size + count * _TOKEN.size
        tops.append(tuple(_TOKEN.iter_unpack(data[at + _COUNT.size : end])))
        at = end
    if at != len(data):
        raise ValueError(f"{len(data)} bytes, not {at}")
    return Trace(stop, tuple(tops))
