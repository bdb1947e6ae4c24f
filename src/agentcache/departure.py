"""An agent that leaves a home in a file: which of its rows are told, in which segments."""

from collections.abc import Callable, Iterable
from itertools import takewhile

from attrs import evolve, frozen

from agentcache.domain.path import Match, Step
from agentcache.domain.segment import Segment
from agentcache.domain.session import Cursor, Session, SessionKey
from agentcache.domain.spec import CacheSpec
from agentcache.domain.tokens import tokens
from agentcache.ports.codec import Codec
from agentcache.ports.payload import Payload
from agentcache.ports.portable import Origin, Portable

Group = tuple[Step, ...]


@frozen(eq=False)
class Departure:
    """An agent whose `path` stays as it is, and how its rows are read: what is `stored`.

    Of segments that the path leaves early only the rows before that are told: those behind were
    taken back, or are another agent's. They are put together with those that follow, so that
    everything that takes the end of a segment is there.
    """

    origin: Origin
    session: Session
    path: Match
    spec: CacheSpec
    codec: Codec
    stored: Callable[[Segment], Payload]

    def portable(self) -> Portable:
        """The agent as it is in a file, every segment with the bytes that it has there."""
        told = [self._told(index, group) for index, group in enumerate(self._groups)]
        segments = rooted(self.origin.root, told)
        at = Cursor(segments[-1].key, segments[-1].stop) if segments else None
        key = SessionKey("", self.origin.root, self.session.name)
        return Portable(self.origin, evolve(self.session, key=key, cursor=at), segments)

    def read(self, index: int) -> Payload:
        """The payload of segment `index` of the file, byte by byte as its rows are stored.

        Raises SegmentUnusable.
        """
        group = self._groups[index]
        parts = [(self.stored(step.segment), step.stop - step.segment.start) for step in group]
        return parts[0][0] if _is_whole(group) else self.codec.join(self.spec, parts)

    @property
    def _groups(self) -> tuple[Group, ...]:
        """The steps that make one segment of the file each.

        The last one is cut short where every row is a place to continue. Of a model that is not
        loaded nobody knows the layers: nothing is told from the first segment on that would be cut.
        """
        groups = grouped(self.path.steps)
        if not self.spec.layers:
            return tuple(takewhile(_is_whole, groups))
        cut = bool(groups) and groups[-1][-1].stop < groups[-1][-1].segment.stop
        return groups[:-1] if cut and not self.spec.interior_restorable else groups

    def _told(self, index: int, group: Group) -> Segment:
        first = group[0].segment
        if _is_whole(group):
            return first
        ids = tokens()
        for step in group:
            ids += step.segment.ids[: step.stop - step.segment.start]
        return evolve(first, ids=ids, nbytes=self.read(index).nbytes)


def grouped(steps: Iterable[Step]) -> tuple[Group, ...]:
    """Each step that uses all of its segment, after those before it that do not."""
    groups: list[Group] = []
    pending: Group = ()
    for step in steps:
        pending = (*pending, step)
        if step.stop == step.segment.stop:
            groups.append(pending)
            pending = ()
    return (*groups, pending) if pending else tuple(groups)


def rooted(root: bytes, path: Iterable[Segment]) -> tuple[Segment, ...]:
    """The same path under `root`, with the keys that it has there."""
    found: list[Segment] = []
    for one in path:
        parent = found[-1].key if found else None
        found.append(Segment.following(root, parent, one.start, one.ids, one.nbytes))
    return tuple(found)


def _is_whole(group: Group) -> bool:
    return len(group) == 1 and group[0].stop == group[0].segment.stop
