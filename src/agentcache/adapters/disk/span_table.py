"""The spans of sessions."""

import sqlite3
from collections.abc import Sequence

from agentcache.adapters.disk.chained_table import ChainedTable, Row
from agentcache.adapters.disk.texts import from_blob, to_blob
from agentcache.domain.spans import Span, SpanKind
from agentcache.domain.tokens import from_bytes, to_bytes

_TABLE = ChainedTable("span", ("kind", "role", "text", "ids"))


def write(db: sqlite3.Connection, session: int, spans: Sequence[Span]) -> None:
    """Make the stored spans of `session` those given; only what differs is written."""
    _TABLE.write(db, session, [_row(span) for span in spans])


def read(db: sqlite3.Connection, session: int) -> tuple[Span, ...]:
    """The spans of `session` up to the first that is not what was written."""
    return tuple(
        Span(SpanKind(kind), from_blob(role), from_blob(text), from_bytes(ids))
        for kind, role, text, ids in _TABLE.read(db, session)
    )


def _row(span: Span) -> Row:
    return span.kind.value, to_blob(span.role), to_blob(span.text), to_bytes(span.ids)
