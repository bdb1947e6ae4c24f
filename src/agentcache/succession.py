"""What a session becomes after a turn."""

from collections.abc import Sequence

from attrs import evolve

from agentcache.domain.conversation import Outcome
from agentcache.domain.errors import InvalidRequest
from agentcache.domain.path import Match
from agentcache.domain.registry import SessionRegistry
from agentcache.domain.request import MAX_AGENT_NAME, Identity, TurnRequest
from agentcache.domain.session import Cursor, Session, SessionKey
from agentcache.domain.spans import RenderedSpan, Span, matching_spans
from agentcache.domain.trace import Trace

NAMELESS = "~"  # how the names of sessions begin that nobody named
FORK_DIGITS = 8


def check_name(name: str) -> None:
    """Raise InvalidRequest unless somebody may call an agent so."""
    Identity(name, exclusive=True)
    if name.startswith(NAMELESS):
        problem = f"names that begin with {NAMELESS!r} are kept for conversations without a name"
        raise InvalidRequest(problem, "agent")


def session_key(request: TurnRequest, registry: SessionRegistry) -> SessionKey:
    """The session that the turn leaves behind.

    An exclusive name is its own session, whatever it said before. Anybody else goes on with the
    session that it wholly continues; a divergence makes a branch, under a name of its own.
    """
    identity = request.identity
    if identity.exclusive and identity.name is not None:
        return SessionKey(identity.tenant, request.root, identity.name)
    known = registry.get(request.session) if request.session else None
    if known is not None and continues(known, request.prompt.spans):
        return known.key
    hinted = SessionKey(identity.tenant, request.root, f"{NAMELESS}{identity.name}")
    if identity.name is not None and registry.get(hinted) is None:
        return hinted
    return SessionKey(identity.tenant, request.root, f"{NAMELESS}{request.id}")


def on_a_fork(request: TurnRequest) -> TurnRequest:
    """The turn as the first one of a new agent, forked from its own, which is busy."""
    identity = request.identity
    suffix = f"{NAMELESS}{request.id[:FORK_DIGITS]}"
    name = (identity.name or "")[: MAX_AGENT_NAME - len(suffix)] + suffix
    return evolve(
        request,
        identity=evolve(identity, name=name),
        session=SessionKey(identity.tenant, request.root, name),
        parent=identity.name,
    )


def successor(
    key: SessionKey,
    before: Session | None,
    request: TurnRequest,
    spans: tuple[Span, ...],
    cursor: Cursor | None,
    now: float,
    answer: str | None = None,
    cached: int = 0,
    trace: Trace | None = None,
    outcome: Outcome | None = None,
    cut: bool = False,
) -> Session:
    """The session `key` after the turn; `now` is in wall-clock seconds.

    `answer` is the text as it was told; None for a turn that was asked for no answer. It was `cut`
    unless the model ended it. `cached` of the prompt's tokens were not computed again. `trace` is
    what the last rows said, `outcome` what is told of the turn to whoever looks its answer up.
    """
    base = before or Session(key, created=now, parent=request.parent)
    messages = request.messages
    if answer is not None:
        said = request.reading.message(answer, cut)
        said = evolve(said, outcome=outcome, note=request.note)
        messages += (said if request.findable else said.unfindable(),)
    digest = request.prompt.tools_digest
    after = base.succeeded(spans, cursor, digest, now, messages, request.tools, trace)
    return evolve(after, usage=base.usage.plus(len(request.prompt), cached))


def forked(session: Session, name: str, now: float) -> Session:
    """A new session that remembers all that `session` does, at the same place in the lineage."""
    key = evolve(session.key, name=name)
    return Session(
        key,
        spans=session.spans,
        cursor=session.cursor,
        tools_digest=session.tools_digest,
        parent=session.name,
        created=now,
        used=now,
        messages=session.messages,
        tools=session.tools,
        trace=session.trace,
    )


def rewound(
    session: Session, messages: int, spans: int, cursor: Cursor | None, now: float
) -> Session:
    """The session with only so many of its messages and spans left."""
    kept = session.messages[:messages]
    digest, tools = session.tools_digest, session.tools
    spans_kept, trace = session.spans[:spans], session.trace
    return session.succeeded(spans_kept, cursor, digest, now, kept, tools, trace)


def stepped_back(path: Match, row: int) -> Cursor | None:
    """The place on `path` after its first `row` rows, or at its end; None for no row."""
    for step in reversed(path.steps):
        if step.segment.start < row:
            return Cursor(step.segment.key, min(row, step.stop))
    return None


def continues(known: Session, spans: Sequence[RenderedSpan | Span]) -> bool:
    """Whether `spans` begin with all that was said in the session."""
    return matching_spans(known.spans, spans) == len(known.spans)
