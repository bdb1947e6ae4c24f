"""Merging while anything else goes on, in any order of what the threads do and tell.

Each job of the store and reader threads, and each answer of theirs, comes when the machine says so.
"""

from collections.abc import Callable

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agentcache import compactor
from agentcache.adapters.memory.hash_model import hash_spec
from agentcache.adapters.memory.telemetry import RecordingTelemetry
from agentcache.compactor import Compactor
from agentcache.disk_room import DiskRoom
from agentcache.domain import compaction
from agentcache.domain.errors import StoreFull
from agentcache.domain.lineage import Lineage
from agentcache.domain.path import Match
from agentcache.domain.plan import Park
from agentcache.domain.registry import SessionRegistry
from agentcache.domain.request import Tier
from agentcache.domain.segment import Segment
from agentcache.domain.session import DEFAULT_TENANT, Session, SessionKey
from agentcache.domain.spec import CacheSpec
from agentcache.domain.tokens import Tokens, tokens
from agentcache.keeper import Keeper
from agentcache.outbox import FILE_OVERHEAD, Outbox
from agentcache.succession import forked, stepped_back
from agentcache.tiers import Tiers
from tests.frail import Disk
from tests.still import Fetch, Rows, StillFetcher, StillWriter, TokenCodec, Told, check_rows
from tests.stress.test_everything import a_merge_fits

NAMES = ("ada", "bob", "eve", "~42")
ROOM = 1 << 40
PROBLEMS = (lambda: StoreFull(100), lambda: OSError("the disk is gone"))
named = st.sampled_from(NAMES)
ids = st.lists(st.integers(0, 1), min_size=1, max_size=5)  # few tokens: much is said alike


class Merging(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(compaction, "SMALL_AT_ONCE", 2)
        self.patch.setattr(compaction, "MOST_SMALL", 3)
        self.patch.setattr(compaction, "CHECKPOINTS_AT_ONCE", 2)
        self.patch.setattr(compaction, "NEWEST_KEPT", 1)
        self.patch.setattr(compactor.log, "exception", a_merge_fits)
        self.disk, self.telemetry = Disk(), RecordingTelemetry()
        self.fetches: list[Fetch] = []
        self.told: dict[SessionKey, Told] = {}
        self.harmed = False

    @initialize(
        specs=st.permutations([hash_spec(), hash_spec(window=3), hash_spec(state=True)]),
        least=st.sampled_from([1, 2, 4]),
        cap=st.sampled_from([4 * FILE_OVERHEAD, 9 * FILE_OVERHEAD, ROOM, ROOM]),
        warm=st.sampled_from([0, 6, ROOM]),
    )
    def open(self, specs: list[CacheSpec], least: int, cap: int, warm: int) -> None:
        self.specs, self.model, self.least, self.cap, self.warm = specs, 0, least, cap, warm
        self._open()

    def _open(self) -> None:
        self.posted: list[Callable[[], None]] = []
        self.writer = StillWriter(self.disk, self.disk)
        catalogue = self.disk.load()
        self.disk.sweep(one.key for one in catalogue.segments)
        outbox = Outbox(
            Lineage(self.spec, self.least), SessionRegistry(), self.writer, self.posted.append
        )
        tiers = Tiers(outbox, self.telemetry, self.warm)
        self.keeper = Keeper(self.spec, tiers, DiskRoom(tiers, self.cap))
        self.keeper.open(catalogue)
        self._compact()

    def _compact(self) -> None:
        self.fetcher = StillFetcher(self.spec, self.disk)
        codec = TokenCodec()
        self.compactor = Compactor(self.keeper, self.fetcher, lambda _root: codec)  # type: ignore[arg-type,return-value]

    @property
    def spec(self) -> CacheSpec:
        return self.specs[self.model]

    @property
    def root(self) -> bytes:
        return bytes([self.model]) * 32

    def key(self, name: str) -> SessionKey:
        return SessionKey(DEFAULT_TENANT, self.root, name)

    # -- what agents do ----------------------------------------------------------------------

    @rule(
        name=named, kept=st.integers(0, 30), more=ids, cut=st.integers(0, 30), store=st.booleans()
    )
    def turn(self, name: str, kept: int, more: list[int], cut: int, store: bool) -> None:
        """Goes on after `kept` of its rows; what is new is cut once on the way."""
        before = self.keeper.registry.get(self.key(name))
        said = self._ids(before)[:kept] + tokens(more)
        cuts = sorted({len(said), *({cut} if 0 < cut < len(said) else ())})
        park = Park(0, self.root, said, tuple(cuts))
        path = self.keeper.keep(Rows(said), park, TokenCodec())  # type: ignore[arg-type]
        assert path.length == len(said) or self.spec.has_windows
        if store:
            session = before or Session(self.key(name))
            self._write(path, session.succeeded((), path.cursor, b"", 0.0))
        else:
            self.keeper.write(path, None)

    @rule(name=named, turns=st.integers(2, 8))
    def talk(self, name: str, turns: int) -> None:
        """Goes on and on, and waits for each turn to be kept."""
        for number in range(turns):
            self.turn(name, 100, [number % 2, 1, number % 3], 0, True)
            self.settle(merging=False)

    @rule(name=named, new=named)
    def fork(self, name: str, new: str) -> None:
        session, there = (self.keeper.registry.get(self.key(one)) for one in (name, new))
        if session is not None and there is None:
            self._write(self._path(session), forked(session, new, 0.0))

    @rule(name=named, row=st.integers(0, 30))
    def rewind(self, name: str, row: int) -> None:
        session = self.keeper.registry.get(self.key(name))
        if session is not None and session.cursor is not None and row < session.cursor.row:
            cursor = stepped_back(self._path(session), row)
            path = self.keeper.lineage.path(cursor) if cursor else Match()
            self._write(path, session.succeeded((), cursor, b"", 0.0))

    @rule(name=named, pinned=st.booleans())
    def pin(self, name: str, pinned: bool) -> None:
        session = self.keeper.registry.get(self.key(name))
        if session is not None:
            self._write(self._path(session), evolve(session, pinned=pinned))

    @rule(name=named)
    def forget(self, name: str) -> None:
        self.keeper.forget(self.key(name))
        self.told.pop(self.key(name), None)

    def _write(self, path: Match, session: Session) -> None:
        told = self.told.setdefault(session.key, Told())
        said = self._of(path)
        told.perhaps.append(said)

        def done(durable: bool) -> None:
            if durable and self.told.get(session.key) is told:
                told.sure = said

        self.keeper.write(path, session, done)

    # -- what goes on meanwhile --------------------------------------------------------------

    @rule(said=st.lists(st.integers(0, 2), max_size=20))
    def begin_fetch(self, said: list[int]) -> None:
        self._begin(self.keeper.lineage.match(self.root, tokens(said)))

    @rule(name=named)
    def come_back(self, name: str) -> None:
        session = self.keeper.registry.get(self.key(name))
        if session is not None and session.cursor is not None:
            self._begin(self._path(session))

    def _begin(self, path: Match) -> None:
        lineage, known = self.keeper.lineage, self.keeper.tiers.warm
        lineage.hold(path.keys)
        lineage.touch(path.keys)
        self.fetches.append(Fetch(path, {one: known[one] for one in path.keys if one in known}))

    @rule(which=st.integers(0, 5))
    def end_fetch(self, which: int) -> None:
        if not self.fetches:
            return
        fetch = self.fetches.pop(which % len(self.fetches))
        read, failed = [], []
        for step in fetch.path.steps:
            try:
                payload = fetch.warm.get(step.segment.key) or self.disk.read(step.segment)
            except Exception as error:
                failed.append((step.segment, error))
            else:
                read.append((step.segment, payload))
                check_rows(step.segment, payload)
        self.keeper.tiers.promote(one for one in read if one[0].key not in fetch.warm)
        self.keeper.tiers.discard(failed)
        assert self.harmed or not failed
        self.keeper.lineage.release(fetch.path.keys)
        self.keeper.tiers.trim()

    @rule(name=named, turns=st.integers(2, 6), stages=st.integers(1, 5))
    def merge(self, name: str, turns: int, stages: int) -> None:
        """A chain is merged, up to some point."""
        self.talk(name, turns)
        self.compactor.work(quiet=not self.fetches)
        stage = (self._join, self._hear, self._write_all, self._hear, self._write_all)
        for do in stage[: stages - 1]:
            do()

    @rule()
    def begin_to_merge(self) -> None:
        self.compactor.work(quiet=not self.fetches)

    @rule()
    def join(self) -> None:
        self._join()

    def _join(self) -> None:
        if self.fetcher.joins:
            self.fetcher.joins.pop(0)()

    @rule(jobs=st.integers(1, 3))
    def write(self, jobs: int) -> None:
        for _ in range(jobs):
            self.writer.work()

    def _write_all(self) -> None:
        while self.writer._jobs or self.writer._idle_jobs:
            self.writer.work()

    @rule(calls=st.integers(1, 3))
    def hear(self, calls: int) -> None:
        for _ in range(calls):
            if self.posted:
                self.posted.pop(0)()

    def _hear(self) -> None:
        while self.posted:
            self.posted.pop(0)()

    @rule(warm=st.sampled_from([0, 6, ROOM]))
    def change_warm_cap(self, warm: int) -> None:
        self.warm = self.keeper.tiers.warm_cap = warm
        self.keeper.tiers.trim()

    @rule(merging=st.booleans())
    def settle(self, merging: bool) -> None:
        """Everybody does what there is to do, but for fetches."""
        for _ in range(1000):
            if merging:
                self.compactor.work(quiet=not self.fetches)
            if not (self.fetcher.joins or self.posted or self.keeper.is_writing):
                return
            self._join()
            self._write_all()
            self._hear()
        raise AssertionError("it never comes to rest")

    @rule(model=st.integers(0, 1))
    def swap(self, model: int) -> None:
        while self.fetches:
            self.end_fetch(0)
        self.compactor.rest()
        self.settle(merging=True)
        self.model = model
        self.keeper.serve(self.spec)
        self._compact()

    @rule()
    def kill(self) -> None:
        self.fetches.clear()
        self.disk = Disk(self.disk.segments, self.disk.sessions.reopened())
        self._open()
        for key, told in self.told.items():
            self._check_found(key, told)

    def _check_found(self, key: SessionKey, told: Told) -> None:
        found = self.keeper.registry.get(key)
        if not self.harmed and self.cap == ROOM and self.warm == ROOM and told.sure is not None:
            assert found is not None
            assert self._ids(found) in (told.sure, *told.perhaps)
        self.told[key] = Told(perhaps=[self._ids(found)])

    # -- what goes wrong ---------------------------------------------------------------------

    @rule(
        method=st.sampled_from(["put", "commit", "read", "delete"]), which=st.sampled_from(PROBLEMS)
    )
    def harm(self, method: str, which: Callable[[], Exception]) -> None:
        self.disk.fail(method, which())
        self.harmed = True

    @rule(which=st.integers(0, 30))
    def spoil(self, which: int) -> None:
        found = [one for one in self._all() if self.keeper.lineage.resides(one.key, Tier.COLD)]
        if found:
            self.disk.segments.damage(found[which % len(found)].key)
            self.harmed = True

    # -- what must hold ----------------------------------------------------------------------

    @invariant()
    def everything_adds_up(self) -> None:
        self.keeper.lineage.check_integrity()
        self.keeper.tiers.check_integrity()
        self.keeper.room.check_integrity()
        assert self.harmed or self.cap < ROOM or self.keeper.read_only is None
        for key, payload in self.keeper.tiers.warm.items():
            check_rows(self.keeper.lineage[key], payload)

    def teardown(self) -> None:
        if hasattr(self, "keeper"):
            self.disk.recover()
            while self.fetches:
                self.end_fetch(0)
            self.settle(merging=True)
            self.everything_adds_up()
            held = sum(self.keeper.lineage._tiers[Tier.COLD].order._holds.values())
            assert held == sum(map(len, self.keeper.tiers.pins.paths.values()))
            for segment, payload in self.disk.segments._kept.values():
                check_rows(segment, payload)
        self.patch.undo()

    def _all(self) -> list[Segment]:
        lineage = self.keeper.lineage
        return sorted((lineage[key] for key in lineage._nodes), key=lambda one: one.key)

    def _path(self, session: Session) -> Match:
        return self.keeper.lineage.path(session.cursor) if session.cursor else Match()

    def _ids(self, session: Session | None) -> "Tokens[int]":
        return self._of(self._path(session)) if session is not None else tokens()

    def _of(self, path: Match) -> "Tokens[int]":
        said = tokens()
        for step in path.steps:
            said += step.segment.ids[: step.stop - step.segment.start]
        return said


TestMerging = Merging.TestCase

actions = st.one_of(
    st.tuples(st.just("turn"), named, st.integers(0, 30), ids, st.integers(0, 9), st.booleans()),
    st.tuples(st.sampled_from(["fork"]), named, named),
    st.tuples(st.just("rewind"), named, st.integers(0, 20)),
    st.tuples(st.just("pin"), named, st.booleans()),
    st.tuples(st.sampled_from(["forget", "come_back"]), named),
    st.tuples(st.just("end_fetch"), st.integers(0, 5)),
    st.tuples(st.just("change_warm_cap"), st.sampled_from([0, 6, ROOM])),
    st.tuples(st.sampled_from(["write", "hear"]), st.integers(1, 3)),
    st.tuples(st.just("swap"), st.integers(0, 1)),
    st.tuples(st.sampled_from(["join", "begin_to_merge", "kill"])),
    st.tuples(st.just("spoil"), st.integers(0, 30)),
    st.tuples(st.just("harm"), st.sampled_from(["put", "commit"]), st.sampled_from(PROBLEMS)),
)


@given(
    specs=st.permutations([hash_spec(), hash_spec(window=3), hash_spec(state=True)]),
    least=st.sampled_from([1, 1, 2, 4]),
    warm=st.sampled_from([0, 6, ROOM]),
    before=st.lists(actions, max_size=3),
    stage=st.integers(1, 5),
    meanwhile=st.lists(actions, min_size=1, max_size=4),
    killed=st.booleans(),
)
def test_whatever_happens_while_a_chain_is_merged_nothing_is_lost(
    specs: list[CacheSpec],
    least: int,
    warm: int,
    before: list[tuple[object, ...]],
    stage: int,
    meanwhile: list[tuple[object, ...]],
    killed: bool,
) -> None:
    it = Merging()
    it.open(specs, least, ROOM, warm)
    try:
        it.talk("ada", 4)
        for name, *how in before:
            getattr(it, str(name))(*how)
        it.everything_adds_up()
        it.merge("ada", 2, stage)
        for name, *how in meanwhile:
            getattr(it, str(name))(*how)
            it.everything_adds_up()
        if killed:
            it.kill()
            it.everything_adds_up()
    finally:
        it.teardown()
