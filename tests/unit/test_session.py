"""Sessions: frozen values that a turn replaces by their successors."""

import pytest
from attrs.exceptions import FrozenInstanceError

from agentcache.domain.session import Cursor, Session, SessionKey
from agentcache.domain.spans import Span, SpanKind
from agentcache.domain.tokens import tokens

KEY = SessionKey("default", b"root", "ada")
SPANS = (
    Span(SpanKind.CONTENT, "user", "hi", tokens([1, 2])),
    Span(SpanKind.CONTENT, "assistant", "ho", tokens([3])),
)


def test_a_session_is_as_long_as_its_spans_together() -> None:
    assert Session(KEY).tokens == 0
    assert Session(KEY, SPANS).tokens == 3


def test_a_session_is_called_what_its_key_says() -> None:
    assert Session(KEY).name == "ada"


def test_a_turn_changes_what_was_said_and_keeps_who_it_is() -> None:
    before = Session(KEY, parent="eve", pinned=True, created=1.0, used=1.0, generation=4)
    after = before.succeeded(SPANS, Cursor(b"s", 3), b"tools", 9.0)
    assert (after.spans, after.cursor, after.tools_digest) == (SPANS, Cursor(b"s", 3), b"tools")
    assert (after.used, after.generation) == (9.0, 5)
    assert (after.key, after.name, after.parent) == (KEY, "ada", "eve")
    assert (after.pinned, after.created) == (True, 1.0)
    assert (before.spans, before.generation) == ((), 4)


def test_a_session_cannot_be_written() -> None:
    with pytest.raises(FrozenInstanceError):
        Session(KEY).used = 2.0  # type: ignore[misc]
