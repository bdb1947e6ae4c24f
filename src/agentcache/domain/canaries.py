"""Which restored rows are compared with what they said before, and who is to blame."""

from collections.abc import Callable, Sequence

from attrs import define, field

from agentcache.domain.canary import Canary
from agentcache.domain.lineage import Lineage
from agentcache.domain.notices import Compared
from agentcache.domain.path import Step
from agentcache.domain.plan import Again, Found
from agentcache.domain.request import TurnRequest
from agentcache.domain.segment import Segment
from agentcache.domain.session import SessionKey
from agentcache.domain.spec import CacheSpec
from agentcache.domain.turn import Turn

_MOST_PROVEN = 1 << 16


def _off(_root: bytes) -> float | None:
    return None


@define(eq=False)
class Canaries:
    """Which sessions were found sound since the start, and which segments under them.

    `tolerance` is that of the rows of a root; None where nothing is compared. The sets are emptied
    when they get long: then some are compared once more.
    """

    tolerance: Callable[[bytes], float | None] = _off
    _sessions: set[SessionKey] = field(factory=set, init=False)
    _segments: set[bytes] = field(factory=set, init=False)

    def begin(self, turn: Turn, steps: Sequence[Step], lineage: Lineage) -> Canary | None:
        """What to compare when `steps` are restored for `turn`; None for nothing.

        Nothing where the client was told already, where nothing will run, where the session was
        compared before, or where what it remembers is not of the last restored rows.
        """
        request, restored = turn.request, turn.restored
        session, cursor, trace = request.session, request.cursor, request.trace
        allowed = self.tolerance(request.root)
        if session is None or cursor is None or trace is None or allowed is None:
            return None
        if turn.admitted or session in self._sessions or restored >= len(turn.ids):
            return None
        tops = trace.before(restored)
        if not tops or lineage.along(cursor, turn.ids, restored).length < restored:
            return None
        asked = tuple(tuple(token for token, _ in top) for top in tops)
        again = Again(turn.ids[restored - len(tops) : restored], asked)
        return Canary(session, again, tops, tuple(one.segment for one in steps), allowed)

    def traces(self, request: TurnRequest, spec: CacheSpec) -> bool:
        """Whether a turn is to remember what its last rows say."""
        wanted = request.store and spec.interior_restorable
        return wanted and self.tolerance(request.root) is not None

    def compare(self, turn: Turn, found: Found | None) -> Compared | None:
        """What came of the canary of `turn`, which is over; None where nothing was `found` out."""
        canary, turn.canary = turn.canary, None
        if canary is None or found is None:
            return None
        if not canary.agrees(found):
            return Compared(turn.number, self._blamed(canary))
        self._prove(canary)
        return Compared(turn.number)

    def _prove(self, canary: Canary) -> None:
        if max(len(self._sessions), len(self._segments)) >= _MOST_PROVEN:
            self._sessions.clear()
            self._segments.clear()
        self._sessions.add(canary.session)
        self._segments.update(one.key for one in canary.segments)

    def _blamed(self, canary: Canary) -> tuple[Segment, ...]:
        """All from the first segment on that no other session was found sound with, and the last
        one in any case.
        """
        segments = canary.segments
        first = next(
            (n for n, one in enumerate(segments) if one.key not in self._segments),
            len(segments) - 1,
        )
        return segments[first:]
