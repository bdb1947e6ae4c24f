"""Long chains of segments made short again, in the background.

Every turn leaves a segment or two, so a conversation becomes a chain that takes longer to restore
than its rows do, and that keeps a checkpoint for each of its turns. Neighbours are put together
without being decoded, on the reader threads; written when the store thread has nothing else to do;
and then take the place of what they are made of, in one commit. Until it is made, the home has what
it had, and everything before it can be given up.
"""

import logging
from collections.abc import Callable
from functools import partial
from itertools import zip_longest

from attrs import define, field, frozen

from agentcache.domain.compaction import Link, checkpoint_run, small_run
from agentcache.domain.errors import IntegrityError
from agentcache.domain.path import Match, Step
from agentcache.domain.request import Tier
from agentcache.domain.segment import Segment
from agentcache.domain.session import Cursor
from agentcache.domain.spec import CacheSpec
from agentcache.domain.tokens import tokens
from agentcache.fetcher import Fetcher
from agentcache.keeper import Keeper
from agentcache.outbox import weight
from agentcache.ports.codec import Codec
from agentcache.ports.payload import Payload

log = logging.getLogger(__name__)
MOST_CHILDREN = 64


@frozen
class _Run:
    """Neighbours that are being merged, on the path to `end`, under a model's `spec`."""

    end: bytes
    spec: CacheSpec
    steps: tuple[Step, ...]

    @property
    def segments(self) -> tuple[Segment, ...]:
        return tuple(step.segment for step in self.steps)

    def merged(self, nbytes: int) -> Segment:
        """The segment that holds all rows of the run."""
        first, ids = self.steps[0].segment, tokens()
        for step in self.steps:
            ids += step.segment.ids[: step.stop - step.segment.start]
        return Segment.following(first.root, first.parent, first.start, ids, nbytes)


@define(eq=False)
class Compactor:
    """Merges one run of neighbours at a time, on paths that have grown.

    Those are the paths of sessions that had a turn, and those that it is told to `visit`. Called on
    the engine thread. `codec` is that of a root. Segments that anybody holds, but for pins, are
    left alone, and so is what has no room for a second copy. Once it shall `rest`, it begins
    nothing any more.
    """

    keeper: Keeper
    fetcher: Fetcher
    codec: Callable[[bytes], Codec]
    _due: dict[bytes, None] = field(factory=dict, init=False)  # the last segments of paths
    _busy: bool = field(default=False, init=False)
    _resting: bool = field(default=False, init=False)

    def rest(self) -> None:
        """Begin nothing any more."""
        self._resting = True

    def visit(self, end: bytes) -> None:
        """The path to the segment `end` has grown: look at it when there is work to be done."""
        self._due[end] = None

    def work(self, quiet: bool) -> None:
        """Begin with the next run, if there is any and the last one is done.

        Where only the ends of segments are places to continue, running turns may count on one that
        would go: there it takes `quiet`, that there are no turns.
        """
        if self._busy or self._resting or not (self._due or self.keeper.grown):
            return
        if not (quiet or self.keeper.spec.interior_restorable):
            return
        for session in map(self.keeper.registry.get, self.keeper.take_grown()):
            if session is not None and session.cursor is not None:
                self.visit(session.cursor.key)
        while self._due and not self._busy:
            end = next(iter(self._due))
            del self._due[end]
            run = self._next_run(end)
            if run is not None and self._has_room(run):
                self._begin(run)

    # -- choosing ----------------------------------------------------------------------------

    def _next_run(self, end: bytes) -> _Run | None:
        path = self._path(end)
        links = self._links(path)
        every_row = self.keeper.spec.interior_restorable
        found = small_run(links) if every_row else checkpoint_run(links)
        if found is None:
            return None
        steps = list(path.steps[found.start : found.stop])
        steps[-1] = Step(steps[-1].segment, steps[-1].segment.stop)  # nothing of the last is lost
        return _Run(end, self.keeper.spec, tuple(steps))

    def _path(self, end: bytes) -> Match:
        """The path to the end of the segment `end`; nothing if it is not there any more."""
        lineage = self.keeper.lineage
        return lineage.path(Cursor(end, lineage[end].stop)) if end in lineage else Match()

    def _links(self, path: Match) -> list[Link]:
        links = []
        for step, after in zip_longest(path.steps, path.steps[1:]):
            one, movable = step.segment, self._is_movable(step.segment)
            joins = movable and after is not None and self._joins(step, after.segment)
            links.append(Link(step.stop - one.start, one.nbytes, movable, joins))
        return links

    def _is_movable(self, segment: Segment) -> bool:
        """Whether it is in the home, nobody uses it, and all that follows it can follow another."""
        lineage, outbox = self.keeper.lineage, self.keeper.outbox
        followers = lineage.children(segment.key, MOST_CHILDREN + 1)
        return (
            lineage.resides(segment.key, Tier.COLD)
            and segment.key not in outbox.writing
            and lineage.holds(segment.key) == self.keeper.tiers.pins.count(segment.key)
            and len(followers) <= MOST_CHILDREN
            and all(lineage.resides(one.key, Tier.COLD) for one in followers)
            and not any(one.key in outbox.writing for one in followers)
        )

    def _joins(self, step: Step, after: Segment) -> bool:
        """Whether nothing needs the end of `step`, or rows after those that `after` follows."""
        standing = self.keeper.registry.at_segment(step.segment.key)
        children = self.keeper.lineage.children(step.segment.key, MOST_CHILDREN + 1)
        beside = [one for one in children if one.key != after.key]
        if self.keeper.spec.interior_restorable:
            rows = [one.cursor.row for one in standing if one.cursor] + [s.start for s in beside]
            return max(rows, default=0) <= step.stop
        behind = self.keeper.registry.at_segment(after.key)
        return (
            step.stop == step.segment.stop
            and not standing
            and not beside
            and not any(one.cursor and one.cursor.row < after.stop for one in behind)
        )

    def _has_room(self, run: _Run) -> bool:
        return self.keeper.room.fits(weight(run.segments))

    # -- doing it ----------------------------------------------------------------------------

    def _begin(self, run: _Run) -> None:
        codec = self.codec(run.segments[0].root)
        self._busy = True
        took = self.keeper.outbox.expecting(partial(self._joined, run))
        self.fetcher.join(codec, run.steps, self.keeper.tiers.warm, took)

    def _joined(self, run: _Run, made: Payload | Exception) -> None:
        if isinstance(made, Exception) or not self._is_still_there(run):
            self._busy = False  # if a segment cannot be read, the next turn finds out
            return
        merged = run.merged(made.nbytes)
        if merged.key in self.keeper.lineage or not self.keeper.room.fits(weight([merged])):
            self._busy = False
            return
        self.keeper.outbox.put(merged, made, partial(self._written, run, merged, made))

    def _written(
        self, run: _Run, merged: Segment, payload: Payload, error: Exception | None
    ) -> None:
        self._busy = False
        if error is not None or merged.key in self.keeper.lineage:
            return
        if not self._is_still_there(run):
            self.keeper.outbox.discard(merged.key)
            return
        try:
            self.keeper.tiers.replace(run.segments, merged, payload)
        except IntegrityError:  # chains may stay long; turns go on
            log.exception("%d segments could not be merged", len(run.steps))
            self.keeper.outbox.discard(merged.key)
            return
        self.visit(run.end if run.end in self.keeper.lineage else merged.key)

    def _is_still_there(self, run: _Run) -> bool:
        """Whether the run could be chosen now, as it was."""
        path, first = self._path(run.end), run.steps[0].segment.key
        if run.spec is not self.keeper.spec or first not in path.keys:
            return False
        at = path.keys.index(first)
        found = path.steps[at : at + len(run.steps)]
        links = self._links(path)[at : at + len(run.steps)]
        return (
            found[:-1] == run.steps[:-1]
            and tuple(step.segment for step in found) == run.segments
            and all(link.movable for link in links)
            and all(link.joins for link in links[:-1])
        )
