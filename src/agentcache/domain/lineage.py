"""The lineage: the tree of all segments, what is shared in it, and what may leave it.

A child leaves its parent at any row; at its end where there are window layers, of which a segment
has the last rows only. What a prompt matches is found by walking down from its root;
whoever uses a path holds it, and nothing that is held is evicted. Using a path touches its children
before their parents, so the least recently used segment never has children that could still be
used: eviction is leaf-first without looking for leaves.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from attrs import define, field, frozen

from agentcache.domain.errors import IntegrityError
from agentcache.domain.path import Match, Step
from agentcache.domain.request import Tier
from agentcache.domain.residents import Residents
from agentcache.domain.segment import Segment
from agentcache.domain.session import Cursor
from agentcache.domain.siblings import Siblings
from agentcache.domain.spec import CacheSpec
from agentcache.domain.tokens import Tokens, common_prefix

BOTH = (Tier.WARM, Tier.COLD)
_Children = dict[int, Siblings]  # by the row at which they leave


@frozen
class _Trail:
    """A path that agrees with a prompt: where it may go on, and the last places to continue on it,
    without its last segment (`before`) and with it (`end`).
    """

    children: _Children
    first_row: int = 0
    last_row: int = 0
    steps: tuple[Step, ...] = ()
    before: int = 0
    end: int = 0

    def end_at(self, row: int) -> int:
        """The last place to continue on the way to a child that leaves the path at `row`."""
        whole = not self.steps or row == self.steps[-1].segment.stop
        return self.end if whole else self.before


@define(eq=False)
class _Node:
    segment: Segment
    children: _Children = field(factory=dict)


@define(eq=False)
class Lineage:
    """All segments of one model's sessions, in RAM (warm), on disk (cold) or both.

    A prompt does not part from a segment after fewer than `least_shared` of its rows: that few are
    computed again and kept twice, so that agents who only begin with the same words of a template
    do not all depend on the segment of whoever came first.
    """

    spec: CacheSpec
    least_shared: int = 1
    _nodes: dict[bytes, _Node] = field(factory=dict, init=False)
    _roots: dict[bytes, _Children] = field(factory=dict, init=False)
    _tiers: dict[Tier, Residents] = field(init=False)

    @_tiers.default
    def _empty_tiers(self) -> dict[Tier, Residents]:
        return {tier: Residents() for tier in BOTH}

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, key: bytes) -> bool:
        return key in self._nodes

    def __getitem__(self, key: bytes) -> Segment:
        return self._nodes[key].segment

    def nbytes(self, tier: Tier) -> int:
        """Encoded bytes of all segments in `tier`."""
        return self._tiers[tier].nbytes

    def count(self, tier: Tier) -> int:
        """How many segments are in `tier`."""
        return len(self._tiers[tier])

    def resides(self, key: bytes, tier: Tier) -> bool:
        """Whether the segment is there and in `tier`."""
        return key in self._tiers[tier]

    # -- growing and shrinking ---------------------------------------------------------------

    def add(self, segment: Segment, *tiers: Tier) -> None:
        """Put `segment` in its place, held by `tiers`; its parent must be there.

        A segment that is there already only gains the tiers.
        """
        if segment.key not in self._nodes:
            self._enlist(segment)
            self._nodes[segment.key] = _Node(segment)
        for tier in tiers:
            self._tiers[tier].add(self._nodes[segment.key].segment)
        for key in reversed(self._ancestry(segment.key)[:-1]):
            for residents in self._tiers.values():
                residents.order.refresh(key)

    def leave(self, key: bytes, tier: Tier) -> bool:
        """The segment is no longer in `tier`. Returns whether it is still known.

        The last tier it leaves takes it out of the tree, which a segment with children cannot do.
        """
        node = self._nodes[key]
        stays = self.resides(key, _other(tier))
        if node.children and not stays:
            raise IntegrityError(f"segment {key.hex()[:16]} would leave its children behind")
        self._tiers[tier].remove(node.segment)
        if not stays:
            self._remove(node)
        return stays

    def merge(self, run: Sequence[Segment], merged: Segment, *tiers: Tier) -> tuple[Segment, ...]:
        """Put `merged`, held by `tiers`, in the place of neighbours, each the parent of the next.

        Returns the segments that follow it now, which have a new parent. None of `run` is held.
        Raises IntegrityError, and changes nothing, where `merged` cannot replace them.
        """
        self._check_run(run, merged)
        after = {one.key for one in run[1:]}
        nodes = [self._nodes[one.key] for one in run]
        children = [key for node in nodes for key in _keys(node.children) if key not in after]
        for node in reversed(nodes):
            self._remove(node)
        self.add(merged, *tiers)
        for key in children:
            child = self._nodes[key]
            child.segment = child.segment.adopted_by(merged.key)
            self._enlist(child.segment)
        self.touch(self._ancestry(merged.key))
        return tuple(self._nodes[key].segment for key in children)

    def cut(self, key: bytes) -> tuple[Segment, ...]:
        """Take the segment and all that descends from it out; they are returned, leaves first.

        For segments that turned out to be unusable. Holds on them stay valid to release.
        """
        removed = []
        for one in self._descendants(key):
            node = self._nodes[one]
            self._remove(node)
            removed.append(node.segment)
        return tuple(removed)

    def children(self, key: bytes, most: int) -> tuple[Segment, ...]:
        """The segments that leave this one, at any row; `most` of them if there are more."""
        some = islice(_keys(self._nodes[key].children), most)
        return tuple(self._nodes[one].segment for one in some)

    def holds(self, key: bytes) -> int:
        """How often the segment is held, by leases and pins."""
        return self._tiers[Tier.COLD].order.holds(key)

    # -- matching ----------------------------------------------------------------------------

    def match(self, root: bytes, ids: "Tokens[int]", limit: int | None = None) -> Match:
        """The path with the largest place to continue, at most `limit` (default: all of `ids`)."""
        limit = len(ids) if limit is None else min(limit, len(ids))
        best = Match()
        pending = [_Trail(self._roots.get(root, {}))]
        while pending:
            for trail in self._longer(pending.pop(), ids, limit):
                length = trail.steps[-1].stop
                restore = self.spec.restore_point(min(limit, length), (trail.end,))
                if (restore, length) > (best.restore, best.length):
                    best = Match(trail.steps, length, restore)
                pending.append(trail)
        return best

    def along(self, cursor: Cursor, ids: "Tokens[int]", limit: int) -> Match:
        """As far as the path to `cursor` agrees with `ids`, at most `limit`, however few rows that
        takes of its last segment. Nothing where only ends of segments are places to continue, or
        where the segment of `cursor` is not there (any more).
        """
        if cursor.key not in self._nodes or not self.spec.interior_restorable:
            return Match()
        steps: list[Step] = []
        for step in self.path(cursor).steps:
            start = step.segment.start
            agreed = start + common_prefix(step.segment.ids, 0, ids, start)
            stop = min(agreed, step.stop, limit)
            if stop > start:
                steps.append(Step(step.segment, stop))
            if stop < step.stop:
                break
        length = steps[-1].stop if steps else 0
        return Match(tuple(steps), length, length)

    def path(self, cursor: Cursor) -> Match:
        """The path that leads to `cursor`."""
        keys = self._ancestry(cursor.key)
        segments = [self._nodes[key].segment for key in keys]
        stops = [child.start for child in segments[1:]] + [cursor.row]
        steps = tuple(Step(one, stop) for one, stop in zip(segments, stops, strict=True))
        return Match(steps, cursor.row, cursor.row)

    # -- staying and leaving -----------------------------------------------------------------

    def hold(self, keys: Iterable[bytes], tiers: Iterable[Tier] = BOTH) -> None:
        """Keep a path from being evicted: a lease holds both tiers, a pin the cold one. Counted."""
        for key in keys:
            for tier in tiers:
                self._tiers[tier].order.hold(key)

    def release(self, keys: Iterable[bytes], tiers: Iterable[Tier] = BOTH) -> None:
        """Undo one `hold` of the same path and tiers."""
        for key in reversed(tuple(keys)):
            for tier in tiers:
                self._tiers[tier].order.release(key)

    def touch(self, keys: Iterable[bytes]) -> None:
        """A path (the root's child first) was used."""
        for key in reversed(tuple(keys)):
            for residents in self._tiers.values():
                residents.order.touch(key)

    def coldest(self, tier: Tier) -> Segment | None:
        """The segment that should leave `tier` next; None when all that is left is held.

        What is held in the cold tier leaves the warm one only when it is in both.
        """
        for key in self._tiers[tier].order:
            node = self._nodes[key]
            if tier is Tier.WARM and (
                self.resides(key, Tier.COLD) or not (node.children or self.holds(key))
            ):
                return node.segment
            if tier is Tier.COLD and not node.children:
                return node.segment
        return None

    def check_integrity(self) -> None:
        """Raise IntegrityError unless tree, tiers, orders and byte counts agree with each other."""
        listed = [key for children in self._roots.values() for key in _keys(children)]
        for key, node in self._nodes.items():
            listed.extend(_keys(node.children))
            self._check_node(key, node)
        if sorted(listed) != sorted(self._nodes):
            raise IntegrityError("a segment is not listed exactly once by its parent")
        for residents in self._tiers.values():
            residents.check_integrity([node.segment for node in self._nodes.values()])

    def _check_run(self, run: Sequence[Segment], merged: Segment) -> None:
        parents = (merged.parent, *(one.key for one in run[:-1]))
        for one, parent in zip(run, parents, strict=True):
            node = self._nodes.get(one.key)
            if node is None or node.segment.parent != parent:
                raise IntegrityError(f"segment {one.key.hex()[:16]} is not where it was")
        if merged.key in self._nodes or (merged.start, merged.stop) != (run[0].start, run[-1].stop):
            raise IntegrityError(f"segment {merged.key.hex()[:16]} cannot take their place")

    def _check_node(self, key: bytes, node: _Node) -> None:
        segment = node.segment
        parent = self._nodes.get(segment.parent) if segment.parent else None
        if segment.key != key or (segment.parent is not None and parent is None):
            raise IntegrityError(f"segment {key.hex()[:16]} has lost its parent")
        if parent and not parent.segment.start < segment.start <= parent.segment.stop:
            raise IntegrityError(f"segment {key.hex()[:16]} leaves its parent where it is not")
        if not any(key in residents for residents in self._tiers.values()):
            raise IntegrityError(f"segment {key.hex()[:16]} is nowhere")

    # -- inside ------------------------------------------------------------------------------

    def _children_of_parent(self, segment: Segment) -> _Children:
        if segment.parent is None:
            return self._roots.setdefault(segment.root, {})
        return self._nodes[segment.parent].children

    def _enlist(self, segment: Segment) -> None:
        children = self._children_of_parent(segment)
        if segment.start not in children:
            children[segment.start] = Siblings(self.least_shared)
        children[segment.start].add(segment)
        if segment.parent is not None:
            self._note_partings(self._nodes[segment.parent])

    def _note_partings(self, node: _Node) -> None:
        segment = node.segment
        siblings = self._children_of_parent(segment).get(segment.start)
        if siblings is not None:
            first = min(node.children, default=segment.stop)
            siblings.parts_early(segment, first < segment.start + self.least_shared)

    def _remove(self, node: _Node) -> None:
        segment = node.segment
        for residents in self._tiers.values():
            residents.remove(segment)
        parent = self._nodes.get(segment.parent) if segment.parent else None
        children = self._children_of_parent(segment)
        children[segment.start].remove(segment)
        if not children[segment.start]:
            del children[segment.start]
            if parent is not None:
                self._note_partings(parent)
        if parent is None and not children:
            del self._roots[segment.root]
        del self._nodes[segment.key]

    def _ancestry(self, key: bytes) -> list[bytes]:
        keys: list[bytes] = []
        at: bytes | None = key
        while at is not None:
            keys.append(at)
            at = self._nodes[at].segment.parent
        return keys[::-1]

    def _descendants(self, key: bytes) -> list[bytes]:
        found, pending = [], [key]
        while pending:
            found.append(pending.pop())
            pending.extend(_keys(self._nodes[found[-1]].children))
        return found[::-1]

    def _longer(self, trail: _Trail, ids: "Tokens[int]", limit: int) -> Iterator[_Trail]:
        """`trail` with one segment more, for every child that agrees with `ids`."""
        for node in self._continuations(trail, ids):
            segment = node.segment
            agreed = segment.start + common_prefix(segment.ids, 0, ids, segment.start)
            whole = agreed == segment.stop
            few = agreed - segment.start < self.least_shared and agreed < len(ids)
            few = few and all(row > agreed for row in node.children)  # unless others part there
            if not whole and (few or self.spec.has_windows):
                continue
            before = trail.end_at(segment.start)
            yield _Trail(
                node.children,
                agreed if self.spec.has_windows else segment.start + 1,
                agreed,
                (*_shortened(trail.steps, segment.start), Step(segment, agreed)),
                before,
                agreed if whole and agreed <= limit else before,
            )

    def _continuations(self, trail: _Trail, ids: "Tokens[int]") -> Iterator[_Node]:
        for row, siblings in trail.children.items():
            if trail.first_row <= row <= trail.last_row and row < len(ids):
                yield from (self._nodes[key] for key in siblings.agreeing(ids, row))


def _other(tier: Tier) -> Tier:
    return Tier.COLD if tier is Tier.WARM else Tier.WARM


def _keys(children: _Children) -> Iterator[bytes]:
    for siblings in children.values():
        yield from siblings


def _shortened(path: tuple[Step, ...], row: int) -> tuple[Step, ...]:
    return (*path[:-1], Step(path[-1].segment, row)) if path else ()
