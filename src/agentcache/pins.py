"""Pinned sessions hold the segments that they stand on, so that these stay in the home.

Copies in RAM may leave it, once there is one in the home.
"""

from collections.abc import Mapping
from types import MappingProxyType

from attrs import define, field

from agentcache.domain.lineage import Lineage
from agentcache.domain.registry import SessionRegistry
from agentcache.domain.request import Tier
from agentcache.domain.session import Session, SessionKey


@define(eq=False)
class Pins:
    """The paths that pinned sessions hold in the lineage."""

    lineage: Lineage
    registry: SessionRegistry
    _paths: dict[SessionKey, tuple[bytes, ...]] = field(factory=dict, init=False)

    @property
    def paths(self) -> Mapping[SessionKey, tuple[bytes, ...]]:
        """What each pinned session holds, a read-only view."""
        return MappingProxyType(self._paths)

    def count(self, segment: bytes) -> int:
        """How many pinned sessions hold the segment."""
        return sum(segment in path for path in self._paths.values())

    def follow(self, session: Session) -> None:
        """Let the session's pin, if it has one, follow its cursor."""
        before = self._paths.pop(session.key, ())
        if session.pinned:
            path = self.lineage.path(session.cursor).keys if session.cursor else ()
            self.lineage.hold(path, (Tier.COLD,))
            self._paths[session.key] = path
        self.lineage.release(before, (Tier.COLD,))

    def drop(self, key: SessionKey) -> None:
        """The session is gone."""
        self.lineage.release(self._paths.pop(key, ()), (Tier.COLD,))

    def let_go(self, segments: set[bytes]) -> tuple[Session, ...]:
        """Release every path with one of `segments` on it; their sessions must `follow` again."""
        keys = [key for key, path in self._paths.items() if segments.intersection(path)]
        for key in keys:
            self.drop(key)
        return tuple(one for one in map(self.registry.get, keys) if one is not None)
