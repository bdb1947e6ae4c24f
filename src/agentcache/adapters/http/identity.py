"""Who speaks: the header that names the agent, else one that hints at the conversation."""

import string
from urllib.parse import quote

from attrs import evolve
from starlette.datastructures import Headers

from agentcache.domain.errors import InvalidRequest
from agentcache.domain.request import Identity

AGENT = "x-agent-id"
CLAUDE_SESSION = "x-claude-code-session-id"
CLAUDE_AGENT = "x-claude-code-agent-id"
HINTS = ("session-id", "session_id", "x-session-id", "x-session-affinity")


def identify(headers: Headers, **fields: str | None) -> Identity:
    """The identity of a request; `fields` are those of its body that name one, in order.

    X-Agent-ID is exclusive. All others are shared by parallel requests of one client, so they only
    say where to look first; empty ones are passed over. Raises InvalidRequest for an unusable name.
    """
    if AGENT in headers:
        return _identity(AGENT, _text(headers[AGENT]), exclusive=True)
    if session := headers.get(CLAUDE_SESSION):
        agent = headers.get(CLAUDE_AGENT)  # subagents share the session of their parent
        return _identity(CLAUDE_SESSION, _text(f"{session}/{agent}" if agent else session))
    hints = [(name, _text(headers.get(name, ""))) for name in HINTS]
    for source, name in [*hints, *fields.items()]:
        if name:
            return _identity(source, name)
    return Identity()


def as_header(name: str) -> str:
    """The name as a header can carry it: as in a URL, what is not printable ASCII, and `%`."""
    return quote(name, safe=string.punctuation.replace("%", "") + " ")


def _identity(source: str, name: str, exclusive: bool = False) -> Identity:
    try:
        return Identity(name, exclusive=exclusive)
    except InvalidRequest as error:
        raise evolve(error, param=source) from None


def _text(header: str) -> str:
    """HTTP hands header bytes over as latin-1; clients write UTF-8."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header
