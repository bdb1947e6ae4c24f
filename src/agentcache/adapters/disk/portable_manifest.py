"""The manifest of a portable file: an agent in JSON, but for its rows."""

from itertools import pairwise
from math import isfinite

import msgspec

from agentcache.domain.conversation import Message, ToolCall
from agentcache.domain.segment import KEY_BYTES, Segment
from agentcache.domain.session import Cursor, Session, SessionKey, Usage
from agentcache.domain.spans import Span, SpanKind, concatenated
from agentcache.domain.tokens import from_bytes, to_bytes, tokens
from agentcache.ports.portable import Origin, Portable

FORMAT = "agentcache-agent"
VERSION = 1
_DTYPES = ("float32", "float16", "bfloat16")


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class _Origin(_Strict, frozen=True):
    model: str
    digest: bytes
    dtype: str
    epoch: int
    codec: str


class _Span(_Strict, frozen=True):
    kind: str
    role: str
    text: str
    ids: bytes


class _Call(_Strict, frozen=True):
    id: str
    name: str
    arguments: str


class _Message(_Strict, frozen=True, omit_defaults=True):
    role: str
    content: str
    name: str | None = None
    tool_calls: tuple[_Call, ...] = ()
    tool_call_id: str | None = None
    thought: str = ""
    said: str | None = None


class _Session(_Strict, frozen=True):
    name: str
    spans: tuple[_Span, ...]
    messages: tuple[_Message, ...]
    tools: str
    tools_digest: bytes
    parent: str | None
    pinned: bool
    created: float
    used: float
    expires: float | None
    usage: tuple[int, int, int]
    row: int


class _Segment(_Strict, frozen=True):
    start: int
    ids: bytes
    nbytes: int


class _Manifest(_Strict, frozen=True):
    format: str
    version: int
    origin: _Origin
    session: _Session
    segments: tuple[_Segment, ...]


class _Head(msgspec.Struct, frozen=True):
    format: str
    version: int


def encode(portable: Portable) -> bytes:
    """The manifest. Raises ValueError for text that JSON cannot hold."""
    origin = portable.origin
    manifest = _Manifest(
        FORMAT,
        VERSION,
        _Origin(origin.model, origin.digest, origin.dtype, origin.epoch, origin.codec),
        _session(portable.session),
        tuple(_Segment(one.start, to_bytes(one.ids), one.nbytes) for one in portable.segments),
    )
    return msgspec.json.encode(manifest)


def decode(data: bytes) -> Portable:
    """The agent that a manifest tells of. Raises ValueError unless all of it adds up."""
    try:
        head = msgspec.json.decode(data, type=_Head)
        _require(head.format == FORMAT, "it is no agent's file")
        _require(
            head.version == VERSION,
            f"it has format {head.version}, this agentcache knows {VERSION}: use a newer one",
        )
        manifest = msgspec.json.decode(data, type=_Manifest)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"its manifest does not add up: {error}") from None
    origin = _origin(manifest.origin)
    segments = _segments(origin, manifest.segments)
    return Portable(origin, _told_session(origin, manifest.session, segments), segments)


def _session(session: Session) -> _Session:
    return _Session(
        session.name,
        tuple(_Span(s.kind.value, s.role, s.text, to_bytes(s.ids)) for s in session.spans),
        tuple(_message(one) for one in session.messages),
        session.tools,
        session.tools_digest,
        session.parent,
        session.pinned,
        session.created,
        session.used,
        session.expires,
        (session.usage.hits, session.usage.prompt, session.usage.cached),
        session.cursor.row if session.cursor else 0,
    )


def _message(one: Message) -> _Message:
    calls = tuple(_Call(call.id, call.name, call.arguments) for call in one.tool_calls)
    return _Message(one.role, one.content, one.name, calls, one.tool_call_id, one.thought, one.said)


def _origin(told: _Origin) -> Origin:
    _require(0 < len(told.digest) <= 2 * KEY_BYTES, "the digest of its model is none")
    _require(told.dtype in _DTYPES, f"its rows are of dtype {told.dtype!r}")
    _require(0 <= told.epoch < 2**31, "its epoch is none")
    return Origin(told.model, told.digest, told.dtype, told.epoch, told.codec)


def _segments(origin: Origin, told: tuple[_Segment, ...]) -> tuple[Segment, ...]:
    """The path, without gaps: each segment leaves the one before at a row that it has."""
    found: list[Segment] = []
    for one in told:
        ids, before = from_bytes(one.ids), found[-1] if found else None
        _require(len(ids) > 0, "a segment holds no token")
        _require(0 < one.nbytes < 2**48, "a segment has no bytes")
        place = before.start < one.start <= before.stop if before else one.start == 0
        _require(place, "its segments do not follow each other")
        parent = before.key if before else None
        found.append(Segment.following(origin.root, parent, one.start, ids, one.nbytes))
    return tuple(found)


def _told_session(origin: Origin, told: _Session, segments: tuple[Segment, ...]) -> Session:
    times = (told.created, told.used, told.expires or 0.0)
    _require(all(isfinite(one) for one in times), "a time is none")
    _require(min(told.usage) >= 0, "its usage is negative")
    _require(len(told.tools_digest) in (0, 16, 32, 64), "its tools' digest is none")
    session = Session(
        SessionKey("", origin.root, told.name),
        tuple(_told_span(one) for one in told.spans),
        _cursor(told.row, segments),
        told.tools_digest,
        told.parent,
        told.pinned,
        told.created,
        told.used,
        0,
        tuple(_told_message(one) for one in told.messages),
        told.tools,
        told.expires,
        Usage(*told.usage),
    )
    rows = _rows(segments, told.row)
    _require(rows == concatenated(session.spans)[: told.row], "its rows are not those of its words")
    return session


def _cursor(row: int, segments: tuple[Segment, ...]) -> Cursor | None:
    if not segments:
        _require(row == 0, "it stands at a row that is not there")
        return None
    _require(segments[-1].start < row <= segments[-1].stop, "it stands beside its last segment")
    return Cursor(segments[-1].key, row)


def _rows(segments: tuple[Segment, ...], row: int) -> object:
    """The ids of the first `row` rows of the path."""
    ids = tokens()
    for one, after in pairwise((*segments, None)):
        assert one is not None
        ids.extend(one.ids[: (after.start if after else row) - one.start])
    return ids


def _told_span(one: _Span) -> Span:
    return Span(SpanKind(one.kind), one.role, one.text, from_bytes(one.ids))


def _told_message(one: _Message) -> Message:
    calls = tuple(ToolCall(call.id, call.name, call.arguments) for call in one.tool_calls)
    return Message(one.role, one.content, one.name, calls, one.tool_call_id, one.thought, one.said)


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)
