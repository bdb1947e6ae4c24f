"""Values that the contract of session stores is told with."""

from typing import Any

import pytest

from agentcache.domain.conversation import Message, ToolCall
from agentcache.domain.errors import CatalogueConflict
from agentcache.domain.segment import Segment
from agentcache.domain.session import Cursor, Session, SessionKey
from agentcache.domain.spans import Span, SpanKind
from agentcache.domain.tokens import tokens
from agentcache.ports.session_store import Catalogue, Commit, SessionStore
from agentcache.testing.strategies import ROOT

HELLO = Message("user", "hello")
CALL = Message("assistant", "", tool_calls=(ToolCall("1", "search", '{"for": "x"}'),))


def content(catalogue: Catalogue) -> tuple[dict[bytes, Any], dict[SessionKey, Any]]:
    """Everything in `catalogue`, the ids included, which values do not compare."""
    segments = {one.key: (one, one.ids.tolist()) for one in catalogue.segments}
    sessions = {
        one.key: (one, [span.ids.tolist() for span in one.spans]) for one in catalogue.sessions
    }
    assert len(segments) == len(catalogue.segments)
    assert len(sessions) == len(catalogue.sessions)
    return segments, sessions


def a_segment(ids: list[int], parent: Segment | None = None, row: int | None = None) -> Segment:
    """A segment of `ids`, at row `row` of `parent`."""
    if parent is None:
        return Segment.following(ROOT, None, 0, tokens(ids), 8 * len(ids))
    start = parent.stop if row is None else row
    return Segment.following(parent.root, parent.key, start, tokens(ids), 8 * len(ids))


def a_session(name: str = "a", at: Segment | None = None, row: int | None = None) -> Session:
    """A session of one span whose cursor is at `row` of segment `at`."""
    cursor = Cursor(at.key, at.stop if row is None else row) if at else None
    return Session(SessionKey("t", ROOT, name), (a_span("hello", [1, 2]),), cursor, b"tools")


def a_span(text: str, ids: list[int], role: str = "user") -> Span:
    """A span of content."""
    return Span(SpanKind.CONTENT, role, text, tokens(ids))


def refused(store: SessionStore, change: Commit, key: bytes) -> None:
    """`change` is refused because of segment `key`, and nothing of it was done."""
    before = content(store.load())
    with pytest.raises(CatalogueConflict) as caught:
        store.commit(change)
    assert caught.value.key == key
    assert content(store.load()) == before
