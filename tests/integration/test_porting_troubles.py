"""Agents carried from home to home while something goes wrong, or in each other's way."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from copy import deepcopy
from itertools import chain, repeat
from pathlib import Path

import pytest

from agentcache.adapters.disk.portable import PortableTars
from agentcache.adapters.memory.hash_model import hash_spec
from agentcache.conductor import Conductor
from agentcache.domain.errors import (
    AgentCacheError,
    AgentExists,
    SegmentCorrupt,
    StoreFull,
    Unavailable,
)
from agentcache.domain.path import Match
from agentcache.domain.request import Tier
from agentcache.domain.spec import CacheSpec
from agentcache.outbox import Done
from agentcache.porting import Porter
from tests.limits import file_size_limit
from tests.talks import Talk
from tests.unit.test_service import heard
from tests.world import Looped, World, looped

TENANT = "default"
SYSTEM = "You are an agent, and you have been told so at some length."
TURNS = 20


@pytest.fixture
def homes() -> Iterator[tuple[Looped, Looped]]:
    with ExitStack() as stack:
        here, there = (stack.enter_context(looped(World(blocks=256))) for _ in range(2))
        here.loop.wait_open()
        there.loop.wait_open()
        yield here, there


def porter(running: Looped) -> Porter:
    return Porter(running.loop, PortableTars())


def say(running: Looped, talk: Talk, text: str) -> tuple[str, int]:
    """What is answered, and how many tokens passed the model for it."""

    async def story() -> str:
        return (await heard(await running.service.begin(talk.ask(text, max_tokens=6))))[0]

    before = running.world.telemetry.tokens_forwarded
    talk.hear(asyncio.run(story()))
    return talk.history[-1].content, running.world.telemetry.tokens_forwarded - before


def settled(running: Looped) -> None:
    """Return when everything is written and merged."""
    while running.loop.ask(lambda conductor: conductor.keeper.is_writing).result():
        pass


def rest(conductor: Conductor) -> None:
    conductor.planner.hot.drop_resting()


def path_of(running: Looped, name: str) -> Match:
    def look(conductor: Conductor) -> Match:
        (session,) = (one for one in conductor.keeper.registry if one.name == name)
        assert session.cursor is not None
        return conductor.keeper.lineage.path(session.cursor)

    return running.loop.ask(look).result()


def holds(running: Looped) -> int:
    def look(conductor: Conductor) -> int:
        return sum(conductor.keeper.lineage._tiers[Tier.COLD].order._holds.values())

    return running.loop.ask(look).result()


@pytest.fixture
def talk() -> Talk:
    return Talk("ada", system=SYSTEM)


@pytest.fixture
def exported(homes: tuple[Looped, Looped], talk: Talk, tmp_path: Path) -> Path:
    for number in range(4):
        say(homes[0], talk, f"turn {number}")
    porter(homes[0]).export(TENANT, "ada", tmp_path / "ada.agent")
    return tmp_path / "ada.agent"


class TestSegmentsUsedInPart:
    """A path that leaves a segment in the middle, as it does after a merge."""

    @pytest.fixture
    def parted(self, homes: tuple[Looped, Looped], talk: Talk) -> Talk:
        here, _ = homes
        for number in range(TURNS):
            say(here, talk, f"turn {number}" if number < TURNS - 6 else f"secret {number}")
        settled(here)
        asyncio.run(here.service.fork(TENANT, "ada", "bob"))
        asyncio.run(here.service.rewind(TENANT, "bob", 6))
        last = path_of(here, "bob").steps[-1]
        assert last.stop < last.segment.stop
        return Talk("bob", system=SYSTEM, history=talk.history[:-12])

    def test_all_rows_of_its_own_are_used_there(
        self, homes: tuple[Looped, Looped], parted: Talk, tmp_path: Path
    ) -> None:
        here, there = homes
        own = path_of(here, "bob").length
        porter(here).export(TENANT, "bob", tmp_path / "bob")
        porter(there).take_in(TENANT, tmp_path / "bob")
        assert path_of(there, "bob").length == own
        said, forwarded = say(there, deepcopy(parted), "go on")
        assert forwarded == there.service.agent(TENANT, "bob").tokens - 1 - own
        here.loop.ask(rest).result()
        assert say(here, parted, "go on")[0] == said

    def test_rows_that_were_taken_back_are_not_in_the_file(
        self, homes: tuple[Looped, Looped], parted: Talk, tmp_path: Path
    ) -> None:
        nbytes = porter(homes[0]).export(TENANT, "bob", tmp_path / "bob")
        assert nbytes == (tmp_path / "bob").stat().st_size
        with PortableTars().open(tmp_path / "bob") as file:
            segments, session = file.portable.segments, file.portable.session
            payloads = [file.read(index) for index in range(len(segments))]
        assert session.cursor is not None
        assert [one.rows for one in payloads] == [len(one) for one in segments]
        assert segments[-1].stop == session.cursor.row == path_of(homes[0], "bob").length
        assert b"secret" not in (tmp_path / "bob").read_bytes()

    def test_what_is_brought_back_home_is_one_of_its_agents(
        self, homes: tuple[Looped, Looped], parted: Talk, tmp_path: Path
    ) -> None:
        here, _ = homes
        porter(here).export(TENANT, "bob", tmp_path / "bob")
        porter(here).take_in(TENANT, tmp_path / "bob", name="twin")
        parted.name = "twin"
        said, forwarded = say(here, parted, "go on")
        assert said
        assert forwarded < 40


SPECS = {"full": hash_spec(), "state": hash_spec(state=True), "both": hash_spec(1, 16, True)}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_segment_that_was_left_for_another_question_is_told_as_far_as_it_is_used(
    spec: CacheSpec, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        here, there = (stack.enter_context(looped(World(spec=spec))) for _ in range(2))
        here.loop.wait_open()
        there.loop.wait_open()
        common = "this is how both of them begin, word for word, " * 4
        ada, bob = Talk("ada", system=SYSTEM), Talk("bob", system=SYSTEM)
        say(here, ada, f"{common} and one of them keeps a secret")
        say(here, bob, f"{common} but the other does not")
        say(here, bob, "and it is asked more")
        path = path_of(here, "bob")
        left = [step for step in path.steps if step.stop < step.segment.stop]
        assert bool(left) is not spec.has_windows
        porter(here).export(TENANT, "bob", tmp_path / "bob")
        porter(there).take_in(TENANT, tmp_path / "bob")
        assert path_of(there, "bob").length == path.length
        here.loop.ask(rest).result()
        assert say(there, deepcopy(bob), "go on") == say(here, bob, "go on")
        assert holds(here) == holds(there) == 0


class TestAtOnce:
    def both(self, there: Looped, calls: list[Callable[[], str]]) -> list[str | AgentCacheError]:
        """What comes of calls that begin at the same moment."""
        together = threading.Barrier(len(calls))

        def run(call: Callable[[], str]) -> str | AgentCacheError:
            together.wait()
            try:
                return call()
            except AgentCacheError as error:
                return error

        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(run, calls))

    def test_of_two_imports_under_one_name_one_is_told_that_it_is_there(
        self, homes: tuple[Looped, Looped], talk: Talk, exported: Path
    ) -> None:
        _, there = homes
        came = self.both(there, [lambda: porter(there).take_in(TENANT, exported)] * 2)
        assert sorted(map(type, came), key=str) == [AgentExists, str]
        assert there.service.agent(TENANT, "ada").turns == 4
        assert say(there, talk, "go on")[1] < 40
        assert holds(there) == 0

    def test_two_imports_that_replace_each_other_leave_one_whole_agent(
        self, homes: tuple[Looped, Looped], talk: Talk, exported: Path
    ) -> None:
        _, there = homes
        take = lambda: porter(there).take_in(TENANT, exported, replace=True)  # noqa: E731
        assert self.both(there, [take, take]) == ["ada", "ada"]
        assert say(there, talk, "go on")[1] < 40
        assert holds(there) == 0

    def test_under_two_names_they_share_their_rows(
        self, homes: tuple[Looped, Looped], exported: Path
    ) -> None:
        _, there = homes
        names = ["ann", "bob"]
        calls = [lambda name=name: porter(there).take_in(TENANT, exported, name) for name in names]
        assert self.both(there, calls) == names
        written = there.world.disk.written
        assert len({one.key for one in written}) == len(written)
        assert path_of(there, "ann").keys == path_of(there, "bob").keys

    def test_an_agent_may_be_talked_to_while_it_is_exported(
        self, homes: tuple[Looped, Looped], talk: Talk, tmp_path: Path
    ) -> None:
        here, there = homes
        say(here, talk, "one")
        told: list[str] = []

        class Slow(PortableTars):
            def write(self, *args: object) -> int:
                told.append(say(here, talk, "two")[0])
                return super().write(*args)  # type: ignore[arg-type]

        Porter(here.loop, Slow()).export(TENANT, "ada", tmp_path / "ada")
        porter(there).take_in(TENANT, tmp_path / "ada")
        assert there.service.agent(TENANT, "ada").turns == 1
        assert there.service.history(TENANT, "ada") == here.service.history(TENANT, "ada")[:3]
        assert told


class TestNoRoom:
    @pytest.mark.parametrize("method", ["put", "commit"])
    @pytest.mark.parametrize("before", range(4))
    def test_an_import_that_does_not_fit_leaves_no_agent_and_can_be_tried_again(
        self,
        homes: tuple[Looped, Looped],
        talk: Talk,
        exported: Path,
        before: int,
        method: str,
    ) -> None:
        _, there = homes
        there.world.disk.fail(method, chain([None] * before, repeat(StoreFull(100))))
        with pytest.raises(Unavailable, match="read-only"):
            porter(there).take_in(TENANT, exported)
        assert there.service.agents(TENANT) == ()
        assert holds(there) == 0
        there.world.disk.recover()
        porter(there).take_in(TENANT, exported)
        assert say(there, talk, "go on")[1] < 40

    @pytest.mark.parametrize("room", [0, 600, 3000])
    def test_an_export_that_does_not_fit_leaves_no_file_and_holds_nothing(
        self, homes: tuple[Looped, Looped], talk: Talk, tmp_path: Path, room: int
    ) -> None:
        say(homes[0], talk, "one")
        (tmp_path / "ada").write_bytes(b"an older one")
        with file_size_limit(room), pytest.raises(StoreFull):
            porter(homes[0]).export(TENANT, "ada", tmp_path / "ada")
        assert [one.name for one in tmp_path.iterdir()] == ["ada"]
        assert (tmp_path / "ada").read_bytes() == b"an older one"
        assert holds(homes[0]) == 0


def test_rows_that_are_damaged_are_given_up_and_the_next_export_has_the_others(
    homes: tuple[Looped, Looped], talk: Talk, tmp_path: Path
) -> None:
    here, there = homes
    for number in range(4):
        say(here, talk, f"turn {number}")
    path = path_of(here, "ada")

    def damage(conductor: Conductor) -> None:
        keeper = conductor.keeper
        cap, keeper.tiers.warm_cap = keeper.tiers.warm_cap, 0
        keeper.tiers.trim()
        keeper.tiers.warm_cap = cap
        here.world.disk.segments.damage(path.keys[-1])
        rest(conductor)

    here.loop.ask(damage).result()
    with pytest.raises(Unavailable, match="damaged"):
        porter(here).export(TENANT, "ada", tmp_path / "ada")
    assert list(tmp_path.iterdir()) == []
    assert len(here.world.telemetry.problems) == 1
    porter(here).export(TENANT, "ada", tmp_path / "ada")
    porter(there).take_in(TENANT, tmp_path / "ada")
    assert say(there, deepcopy(talk), "go on")[0] == say(here, talk, "go on")[0]
    assert holds(here) == holds(there) == 0


@pytest.mark.parametrize("last", [False, True], ids=["in the middle", "at the end"])
def test_rows_that_turn_out_to_be_unusable_while_they_are_imported_are_brought_again(
    homes: tuple[Looped, Looped], talk: Talk, exported: Path, last: bool
) -> None:
    _, there = homes
    problems: list[int] = []

    def cut(conductor: Conductor) -> None:
        """As when a turn that shares the rows finds them damaged."""
        keeper = conductor.keeper
        first = min((one for one in there.world.segments(Tier.COLD)), key=lambda one: one.start)
        keeper.tiers.discard([(first, SegmentCorrupt(first.key, "bad"))])

    class Interfering(Porter):
        def _committed(self, change: Callable[[Conductor, Done], None]) -> None:
            super()._committed(change)
            problems.append(0)
            if len(problems) == (segments if last else 2):
                self._loop.ask(cut).result()

    with PortableTars().open(exported) as file:
        segments = len(file.portable.segments)
    there.world.conductor = there.loop.conductor
    with pytest.raises(Unavailable, match="cannot be read"):
        Interfering(there.loop, PortableTars()).take_in(TENANT, exported)
    assert (there.service.agents(TENANT), holds(there)) == ((), 0)
    porter(there).take_in(TENANT, exported)
    assert say(there, talk, "go on")[1] < 40
