"""A process that owns a home, for tests that kill it: `python -m tests.integration.home_process`.

`hold PATH` opens the home, says "held", and keeps it until its input ends. `work PATH` makes turn
after turn, each a segment and a commit, and says what it is about to do and what is done.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from attrs import evolve

from agentcache.adapters.disk.catalogue import SqliteSessionStore
from agentcache.adapters.disk.home import Home
from agentcache.adapters.disk.segments import DiskSegmentStore
from agentcache.domain.segment import Segment
from agentcache.domain.session import Cursor, Session, SessionKey
from agentcache.domain.spans import Span, SpanKind
from agentcache.domain.tokens import tokens
from agentcache.ports.payload import Payload, Tensor
from agentcache.ports.session_store import Commit
from agentcache.testing.strategies import ROOT

ROWS = 8
WIDTH = 1 << 16


def turns() -> Iterator[tuple[Segment, Payload, Session]]:
    """What the worker keeps, turn by turn: always the same."""
    session = Session(SessionKey("t", ROOT, "worker"))
    parent: Segment | None = None
    number = 0
    while True:
        data = memoryview(bytes([number % 256]) * (ROWS * WIDTH))
        payload = Payload("native", ROWS, {"g0.k": Tensor("U8", (ROWS, WIDTH), data)})
        ids = tokens(range(number, number + ROWS))
        start = parent.stop if parent else 0
        segment = Segment.following(ROOT, parent and parent.key, start, ids, payload.nbytes)
        spans = (*session.spans, Span(SpanKind.CONTENT, "user", f"turn {number}", ids))
        cursor = Cursor(segment.key, segment.stop)
        session = session.succeeded(spans, cursor, b"", float(number))
        yield segment, payload, session
        parent, number = segment, number + 1


def work(path: Path) -> None:
    """Make turns for ever."""
    home = Home.open(path)
    segments = DiskSegmentStore.open(home.segments, home.quarantine)
    sessions = SqliteSessionStore.open(home.catalogue)
    for number, (segment, payload, session) in enumerate(turns()):
        say("put", number)
        segments.put(segment, payload)
        say("commit", number)
        sessions.commit(Commit(add=(segment,), put=(evolve(session),)))
        say("done", number)


def hold(path: Path, address: str) -> None:
    """Keep the home until standard input ends."""
    with Home.open(path) as home:
        home.announce(address)
        say("held", 0)
        sys.stdin.read()


def say(what: str, number: int) -> None:
    """One line, at once."""
    sys.stdout.write(f"{what} {number}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    {"work": work, "hold": hold}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
