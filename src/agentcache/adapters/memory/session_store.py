"""The catalogue in dicts."""

from secrets import token_bytes

from attrs import define, field

from agentcache.domain.errors import CatalogueConflict, IntegrityError
from agentcache.domain.segment import Segment
from agentcache.domain.session import Session, SessionKey
from agentcache.ports.session_store import Catalogue, Commit


@define(eq=False)
class MemorySessionStore:
    """A SessionStore that lives as long as whoever holds it; `reopened` stands for a restart."""

    _segments: dict[bytes, Segment] = field(factory=dict)
    _sessions: dict[SessionKey, Session] = field(factory=dict)
    _salt: bytes = field(factory=lambda: token_bytes(32), repr=False)
    _closed: bool = False

    def load(self) -> Catalogue:
        """Everything that was committed; a parent starts before its children do."""
        self._require_open()
        segments = sorted(self._segments.values(), key=lambda one: (one.start, one.key))
        return Catalogue(tuple(segments), tuple(self._sessions.values()))

    def commit(self, change: Commit) -> None:
        """Make the whole change, or none of it."""
        self._require_open()
        segments = {key: one for key, one in self._segments.items() if key not in change.drop}
        segments |= {one.key: one for one in change.add}
        sessions = {key: one for key, one in self._sessions.items() if key not in change.forget}
        sessions |= {one.key: one for one in change.put}
        _check(segments, sessions)
        self._segments, self._sessions = segments, sessions

    def salt(self) -> bytes:
        """A random secret, the same for all stores that came from this one."""
        self._require_open()
        return self._salt

    def close(self) -> None:
        """Refuse all later calls."""
        self._closed = True

    def reopened(self) -> "MemorySessionStore":
        """A store that holds what this one holds, as after a restart."""
        return MemorySessionStore(dict(self._segments), dict(self._sessions), self._salt)

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every row that is referred to is there."""
        try:
            _check(self._segments, self._sessions)
        except CatalogueConflict as error:
            raise IntegrityError(str(error)) from error

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError("the catalogue is closed")


def _check(segments: dict[bytes, Segment], sessions: dict[SessionKey, Session]) -> None:
    for segment in segments.values():
        if segment.parent is not None:
            _need_row(segments, segment.parent, segment.root, segment.start)
    for session in sessions.values():
        if session.cursor is not None:
            _need_row(segments, session.cursor.key, session.key.root, session.cursor.row)


def _need_row(segments: dict[bytes, Segment], key: bytes, root: bytes, row: int) -> None:
    found = segments.get(key)
    if found is None or found.root != root or not found.start < row <= found.stop:
        raise CatalogueConflict(key)
