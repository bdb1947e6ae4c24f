"""The lineage against a naive model: a dict of what every segment's path says."""

from itertools import takewhile

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentcache.domain.lineage import Lineage
from agentcache.domain.path import Match
from agentcache.domain.request import Tier
from agentcache.domain.segment import Segment
from agentcache.domain.spec import CacheSpec
from agentcache.domain.tokens import tokens
from tests.unit.domain_strategies import cache_specs, tiny_ids

ROOTS = (b"one" * 8, b"two" * 8)
tiers = st.sampled_from([Tier.WARM, Tier.COLD])


class LineageMachine(RuleBasedStateMachine):
    """`says` maps each segment's key to all tokens from the root to its end."""

    @initialize(spec=cache_specs)
    def start(self, spec: CacheSpec) -> None:
        self.lineage = Lineage(spec)
        self.segments: dict[bytes, Segment] = {}
        self.says: dict[bytes, list[int]] = {}
        self.tiers: dict[bytes, set[Tier]] = {}
        self.leases: list[tuple[bytes, ...]] = []

    # -- growing and shrinking ---------------------------------------------------------------

    @rule(
        data=st.data(), ids=tiny_ids, where=st.sets(tiers, min_size=1), root=st.sampled_from(ROOTS)
    )
    def add(self, data: st.DataObject, ids: list[int], where: set[Tier], root: bytes) -> None:
        parent = data.draw(st.sampled_from([None, *sorted(self.segments)]), "parent")
        start = 0
        if parent is not None:
            before = self.segments[parent]
            root, first = before.root, before.start + 1
            first = before.stop if self.lineage.spec.has_windows else first
            start = data.draw(st.integers(first, before.stop), "row")
        segment = Segment.following(root, parent, start, tokens(ids), 3 * len(ids))
        self.lineage.add(segment, *where)
        self.segments[segment.key] = segment
        self.says[segment.key] = [*(self.says[parent][:start] if parent else ()), *ids]
        self.tiers.setdefault(segment.key, set()).update(where)

    @precondition(lambda self: self.segments)
    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.segments)))
        removed = [segment.key for segment in self.lineage.cut(key)]
        assert sorted(removed) == sorted(self._descendants(key))
        for position, one in enumerate(removed):
            assert self.segments[one].parent not in removed[:position], "a parent before its child"
        for one in removed:
            self._forget(one)

    @rule(tier=tiers)
    def evict(self, tier: Tier) -> None:
        victim = self.lineage.coldest(tier)
        able = [key for key in self.segments if self._may_leave(key, tier)]
        if victim is None:
            assert not able
            return
        assert victim.key in able
        self.tiers[victim.key].discard(tier)
        assert self.lineage.leave(victim.key, tier) == bool(self.tiers[victim.key])
        if not self.tiers[victim.key]:
            self._forget(victim.key)

    @precondition(lambda self: self.segments)
    @rule(data=st.data(), where=st.sets(tiers, min_size=1))
    def merge(self, data: st.DataObject, where: set[Tier]) -> None:
        pairs = sorted(
            (one.parent, one.key)
            for one in self.segments.values()
            if one.parent is not None and self._may_merge(self.segments[one.parent], one)
        )
        if not pairs:
            return
        first, last = (self.segments[key] for key in data.draw(st.sampled_from(pairs)))
        ids = first.ids[: last.start - first.start] + last.ids
        merged = Segment.following(first.root, first.parent, first.start, ids, 3 * len(ids))
        if merged.key in self.segments:
            return
        gone = (first.key, last.key)
        children = {key for key, one in self.segments.items() if one.parent in gone} - set(gone)
        moved = self.lineage.merge((first, last), merged, *where)
        assert {one.key for one in moved} == children
        assert all(one.parent == merged.key and one.is_sound for one in moved)
        said = self.says[last.key]
        for key in gone:
            self._forget(key)
        self.segments |= {one.key: one for one in (merged, *moved)}
        self.says[merged.key], self.tiers[merged.key] = said, set(where)

    # -- staying -----------------------------------------------------------------------------

    @precondition(lambda self: self.segments)
    @rule(data=st.data(), what=st.sampled_from(["hold", "touch"]))
    def use(self, data: st.DataObject, what: str) -> None:
        path = self._path(data.draw(st.sampled_from(sorted(self.segments))))
        if what == "touch":
            self.lineage.touch(path)
        else:
            self.lineage.hold(path)
            self.leases.append(path)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        self.lineage.release(lease)

    # -- matching ----------------------------------------------------------------------------

    @rule(
        data=st.data(),
        tail=st.lists(st.integers(0, 1), max_size=6),
        root=st.sampled_from(ROOTS),
        less=st.integers(0, 4),
    )
    def match(self, data: st.DataObject, tail: list[int], root: bytes, less: int) -> None:
        known = data.draw(st.sampled_from([None, *sorted(self.says)]), "prompt")
        said = self.says[known][: data.draw(st.integers(0, 9), "kept")] if known else []
        root = self.segments[known].root if known else root
        ids = [*said, *tail]
        limit = max(0, len(ids) - less)
        match = self.lineage.match(root, tokens(ids), limit)
        assert match.restore == self._best(root, ids, limit)
        if self.lineage.spec.interior_restorable:
            assert match.length == self._best(root, ids, len(ids))
        self._is_a_path(match, root, ids)

    @precondition(lambda self: self.segments)
    @rule(data=st.data())
    def path(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.segments)))
        segment = self.segments[key]
        found = self.lineage.match(segment.root, tokens(self.says[key]))
        assert found.cursor is not None
        path = self.lineage.path(found.cursor)
        assert (path.keys, path.length) == (found.keys, found.length)
        self._is_a_path(path, segment.root, self.says[key])

    # -- what holds --------------------------------------------------------------------------

    @invariant()
    def the_tree_is_the_model(self) -> None:
        self.lineage.check_integrity()
        assert len(self.lineage) == len(self.segments)
        for key in self.segments:
            assert key in self.lineage
            both = (Tier.WARM, Tier.COLD)
            assert {one for one in both if self.lineage.resides(key, one)} == self.tiers[key]
        for tier in (Tier.WARM, Tier.COLD):
            there = [self.segments[key] for key, where in self.tiers.items() if tier in where]
            assert self.lineage.nbytes(tier) == sum(segment.nbytes for segment in there)
            assert self.lineage.count(tier) == len(there)

    def _best(self, root: bytes, ids: list[int], limit: int) -> int:
        """The largest place to continue, by looking at every segment there is."""
        best = 0
        for key, said in self.says.items():
            if self.segments[key].root != root:
                continue
            pairs = zip(said, ids, strict=False)
            agreed = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
            if self.lineage.spec.interior_restorable:
                best = max(best, min(agreed, limit))
            elif agreed == len(said) <= limit:
                best = max(best, agreed)
        return best

    def _is_a_path(self, match: Match, root: bytes, ids: list[int]) -> None:
        at, parent = 0, None
        found: list[int] = []
        for step in match.steps:
            segment = step.segment
            assert (segment.root, segment.parent, segment.start) == (root, parent, at)
            assert segment.start < step.stop <= segment.stop
            found.extend(segment.ids[: step.stop - segment.start])
            at, parent = step.stop, segment.key
        assert found == ids[: match.length]
        restoring = match.restoring()
        assert (restoring[-1].stop if restoring else 0) == match.restore

    def _may_leave(self, key: bytes, tier: Tier) -> bool:
        if tier not in self.tiers[key] or any(key in lease for lease in self.leases):
            return False
        children = any(one.parent == key for one in self.segments.values())
        return not children or (tier is Tier.WARM and Tier.COLD in self.tiers[key])

    def _may_merge(self, first: Segment, last: Segment) -> bool:
        """Whether nobody holds them, or needs what is lost: rows, and the end of the first."""
        beside = [one for one in self.segments.values() if one.parent == first.key and one != last]
        if any(one.key in lease for one in (first, last) for lease in self.leases):
            return False
        if self.lineage.spec.interior_restorable:
            return all(one.start <= last.start for one in beside)
        return last.start == first.stop and not beside

    def _descendants(self, key: bytes) -> list[bytes]:
        children = [one for one, segment in self.segments.items() if segment.parent == key]
        return [key, *(one for child in children for one in self._descendants(child))]

    def _path(self, key: bytes) -> tuple[bytes, ...]:
        parent = self.segments[key].parent
        return (*(self._path(parent) if parent else ()), key)

    def _forget(self, key: bytes) -> None:
        del self.segments[key], self.says[key], self.tiers[key]


TestLineage = LineageMachine.TestCase
