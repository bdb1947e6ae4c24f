"""A home whose medium fails and whose owners are killed at any moment keeps all it has promised."""

import errno
from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentcache.domain.errors import HomeError, SegmentUnusable, StoreFull
from agentcache.domain.segment import Segment
from agentcache.domain.session import Cursor
from tests.faults import Fault
from tests.faults.lives import Lives, ProcessEnded

ends = st.sampled_from(["kill", "power"])
soon = st.integers(0, 3) | st.integers(0, 60)  # a turn takes about 20 changes
times = st.floats(-1e9, 1e10)  # clocks are set back, and forth


class AnyOrder(RuleBasedStateMachine):
    """Turns, evictions and restarts, with errors and ends planned between them."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.lives = Lives.at(Path(self.folder.name) / "home")
        self.end = "kill"
        self.chance = Random(0)

    # -- work --------------------------------------------------------------------------------

    @rule(
        name=st.sampled_from("abc"),
        sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3),
        at=st.none() | st.integers(0, 20),
        back=st.integers(0, 4),
        now=times,
        count=st.integers(1, 4),
    )
    def take_turns(
        self, name: str, sizes: list[int], at: int | None, back: int, now: float, count: int
    ) -> None:
        for _ in range(count):
            self.do(lambda: self.lives.turn(name, sizes, self.cursor(at, back), now))

    @rule(which=st.integers(0, 20), corrupt=st.booleans())
    def evict(self, which: int, corrupt: bool) -> None:
        leaves = self.lives.promised.leaves()
        if leaves:
            self.do(lambda: self.evict_now(which, corrupt))

    @rule(which=st.integers(0, 20))
    def merge(self, which: int) -> None:
        if self.lives.promised.runs():
            self.do(lambda: self.merge_now(which))

    @rule(which=st.integers(0, 2))
    def forget(self, which: int) -> None:
        if self.lives.promised.sessions:
            self.do(lambda: self.forget_now(which))

    # -- trouble -----------------------------------------------------------------------------

    @precondition(lambda self: self.lives.is_open)
    @rule(
        error=st.sampled_from([errno.ENOSPC, errno.EIO]),
        half=st.booleans(),
        after=soon,
        count=st.integers(1, 4),
    )
    def plan_errors(self, error: int, half: bool, after: int, count: int) -> None:
        self.lives.medium.plan(Fault(error, half=half), after, count)

    @precondition(lambda self: self.lives.is_open)
    @rule(half=st.booleans(), after=soon, end=ends)
    def plan_end(self, half: bool, after: int, end: str) -> None:
        self.lives.medium.plan(Fault(half=half), after)
        self.end = end

    @precondition(lambda self: not self.lives.is_open)
    @rule(error=st.sampled_from([0, errno.ENOSPC, errno.EIO]), after=soon, end=ends)
    def plan_that_it_cannot_be_opened(self, error: int, after: int, end: str) -> None:
        self.lives.medium.plan(Fault(error), after)
        self.end = end

    @rule(after=soon)
    def plan_short_write(self, after: int) -> None:
        self.lives.medium.plan(Fault(short=True), after)

    @rule()
    def recover(self) -> None:
        self.lives.medium.recover()

    @precondition(lambda self: self.lives.is_open)
    @rule(end=ends, seed=st.integers(0, 1000))
    def end_now(self, end: str, seed: int) -> None:
        self.chance = Random(seed)
        self.end_life(end)

    @precondition(lambda self: self.lives.is_open)
    @rule()
    def close(self) -> None:
        self.lives.close()
        if not self.lives.medium.is_alive:
            self.end_life(self.end)

    @precondition(lambda self: self.lives.is_open and self.lives.promised.segments)
    @rule(which=st.integers(0, 20))
    def read_from_a_bad_medium(self, which: int) -> None:
        segments = list(self.lives.promised.segments.values())
        self.lives.medium.read_error = errno.EIO
        try:
            self.lives.segments.read(segments[which % len(segments)])
            raise AssertionError("it was read")
        except SegmentUnusable:
            self.lives.medium.read_error = 0

    # -- doing it ----------------------------------------------------------------------------

    def do(self, work: Callable[[], object]) -> None:
        """Do it in the life that there is, or in a new one, whatever that leads to."""
        try:
            if not self.lives.is_open:
                self.lives.open()
            work()
        except ProcessEnded:
            self.end_life(self.end)
        except (HomeError, OSError, StoreFull):  # it could not be opened
            assert not self.lives.is_open
            if self.lives.medium.is_alive:
                assert self.lives.medium.struck
                self.lives.medium.recover()
            else:
                self.end_life(self.end)

    def end_life(self, end: str) -> None:
        self.lives.kill() if end == "kill" else self.lives.cut_power(self.chance)

    def evict_now(self, which: int, corrupt: bool) -> None:
        leaves = self.lives.promised.leaves()
        if leaves:
            self.lives.evict(leaves[which % len(leaves)], corrupt)

    def merge_now(self, which: int) -> None:
        runs = self.lives.promised.runs()
        if runs:
            self.lives.merge(runs[which % len(runs)])

    def forget_now(self, which: int) -> None:
        keys = list(self.lives.promised.sessions)
        if keys:
            self.lives.forget(keys[which % len(keys)])

    def cursor(self, at: int | None, back: int) -> Cursor | None:
        segments: list[Segment] = list(self.lives.promised.segments.values())
        if at is None or not segments:
            return None
        segment = segments[at % len(segments)]
        return Cursor(segment.key, max(segment.start + 1, segment.stop - back))

    # -- what must hold ----------------------------------------------------------------------

    @invariant()
    def what_is_counted_is_there(self) -> None:
        if self.lives.is_open and self.lives.medium.is_alive:
            self.lives.check()

    def teardown(self) -> None:
        try:
            if self.lives.is_open:
                self.end_life(self.end)
            self.lives.medium.revive()
            self.lives.open()
            self.lives.check()
            self.lives.check_files()
        finally:
            self.lives.kill()
            self.folder.cleanup()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(stateful_step_count=40)
