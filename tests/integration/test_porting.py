"""Agents carried from home to home as files."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

import pytest
from attrs import evolve, frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentcache.adapters.disk.portable import PortableTar, PortableTars
from agentcache.domain.errors import AgentExists, InvalidRequest, UnknownAgent
from agentcache.domain.events import Admitted
from agentcache.domain.request import Tier
from agentcache.porting import Porter
from agentcache.ports.payload import Payload
from agentcache.ports.portable import Portable
from tests.frail import CountingCodec, OtherCodec
from tests.talks import Talk
from tests.unit.test_service import heard
from tests.world import Looped, World, looped

TENANT = "default"
SYSTEM = "You are an agent, and you have been told so at some length."


def porter(running: Looped) -> Porter:
    return Porter(running.loop, PortableTars())


def say(running: Looped, talk: Talk, text: str) -> Admitted:
    async def story() -> Admitted:
        turn = await running.service.begin(talk.ask(text, max_tokens=6))
        talk.hear((await heard(turn))[0])
        return turn.admitted

    return asyncio.run(story())


@pytest.fixture
def homes() -> Iterator[tuple[Looped, Looped]]:
    with ExitStack() as stack:
        here, there = (stack.enter_context(looped(World())) for _ in range(2))
        here.loop.wait_open()
        there.loop.wait_open()
        yield here, there


@pytest.fixture
def talk() -> Talk:
    return Talk("ada", system=SYSTEM)


@pytest.fixture
def exported(homes: tuple[Looped, Looped], talk: Talk, tmp_path: Path) -> Path:
    here, _ = homes
    say(here, talk, "one")
    say(here, talk, "two")
    path = tmp_path / "ada.agent"
    porter(here).export(TENANT, "ada", path)
    return path


class TestCarried:
    def test_an_agent_goes_on_in_another_home_from_its_rows(
        self, homes: tuple[Looped, Looped], talk: Talk, exported: Path
    ) -> None:
        here, there = homes
        assert porter(there).take_in(TENANT, exported) == "ada"
        assert there.service.history(TENANT, "ada") == here.service.history(TENANT, "ada")
        rows = here.service.agent(TENANT, "ada").tokens - 1
        admitted = say(there, talk, "three")
        assert admitted.cached >= rows
        assert admitted.tier is not Tier.NONE

    def test_its_keys_are_those_of_the_home_it_is_in(
        self, homes: tuple[Looped, Looped], exported: Path
    ) -> None:
        porter(homes[1]).take_in(TENANT, exported)
        keys = [{one.key for one in each.world.disk.sessions.load().segments} for each in homes]
        assert keys[1]
        salts = [each.loop.conductor.roots.salt for each in homes]
        assert not keys[0] & keys[1] or salts[0] == salts[1]

    def test_it_keeps_its_codec_and_takes_the_place_of_one_with_another(
        self, talk: Talk, exported: Path
    ) -> None:
        with looped(World(codec=OtherCodec(), other_codecs=(CountingCodec,))) as home:
            home.loop.wait_open()
            say(home, Talk("ada", system=SYSTEM), "something else")
            assert home.service.agent(TENANT, "ada").codec == OtherCodec.name
            with pytest.raises(AgentExists):
                porter(home).take_in(TENANT, exported)
            porter(home).take_in(TENANT, exported, replace=True)
            (view,) = home.service.agents(TENANT)
            assert (view.name, view.codec, view.turns) == ("ada", CountingCodec.name, 2)
            assert say(home, talk, "three").cached > 0
            (kept,) = home.world.disk.sessions.load().sessions
            assert kept.messages[-2].content == "three"

    def test_one_of_a_codec_that_there_is_not_is_refused(self, exported: Path) -> None:
        with looped(World(codec=OtherCodec())) as home:
            home.loop.wait_open()
            with pytest.raises(InvalidRequest, match="there is no codec 'native'"):
                porter(home).take_in(TENANT, exported)

    def test_rows_that_are_there_already_are_not_written_again(
        self, homes: tuple[Looped, Looped], exported: Path
    ) -> None:
        here, _ = homes
        before = here.world.disk.segments.nbytes()
        porter(here).take_in(TENANT, exported, name="twin")
        assert here.world.disk.segments.nbytes() == before

    def test_it_survives_a_restart(self, exported: Path, homes: tuple[Looped, Looped]) -> None:
        _, there = homes
        porter(there).take_in(TENANT, exported)
        assert [one.name for one in there.world.disk.sessions.load().sessions] == ["ada"]

    def test_pins_and_times_are_carried(
        self, homes: tuple[Looped, Looped], talk: Talk, tmp_path: Path
    ) -> None:
        here, there = homes
        say(here, talk, "one")
        asyncio.run(here.service.pin(TENANT, "ada"))
        asyncio.run(here.service.expire(TENANT, "ada", 9e9))
        porter(here).export(TENANT, "ada", tmp_path / "a")
        porter(there).take_in(TENANT, tmp_path / "a")
        view = there.service.agent(TENANT, "ada")
        assert (view.pinned, view.expires) == (True, 9e9)

    def test_nothing_stays_held_and_only_its_owner_can_read_the_file(
        self, homes: tuple[Looped, Looped], exported: Path
    ) -> None:
        _, there = homes
        porter(there).take_in(TENANT, exported)
        for each in homes:
            each.loop.ask(lambda _conductor: None).result()
            order = each.loop.conductor.keeper.lineage._tiers[Tier.COLD].order
            assert sum(order._holds.values()) == 0
        assert exported.stat().st_mode & 0o777 == 0o600


class TestRefused:
    def test_an_agent_that_is_there_unless_it_is_to_be_replaced(
        self, homes: tuple[Looped, Looped], talk: Talk, exported: Path
    ) -> None:
        here, _ = homes
        say(here, talk, "three")
        with pytest.raises(AgentExists):
            porter(here).take_in(TENANT, exported)
        assert here.service.agent(TENANT, "ada").turns == 3
        porter(here).take_in(TENANT, exported, replace=True)
        assert here.service.agent(TENANT, "ada").turns == 2

    def test_an_agent_that_nobody_knows(self, homes: tuple[Looped, Looped], tmp_path: Path) -> None:
        with pytest.raises(UnknownAgent):
            porter(homes[0]).export(TENANT, "nobody", tmp_path / "nobody")
        assert list(tmp_path.iterdir()) == []

    def test_another_model_and_it_says_which(self, exported: Path) -> None:
        with looped(World(digest=b"other")) as other:
            other.loop.wait_open()
            with pytest.raises(InvalidRequest, match="one of the model 'memory'"):
                porter(other).take_in(TENANT, exported)
            assert other.service.agents(TENANT) == ()

    def test_a_name_that_cannot_be_one(self, homes: tuple[Looped, Looped], exported: Path) -> None:
        with pytest.raises(InvalidRequest, match="begin with"):
            porter(homes[1]).take_in(TENANT, exported, name="~x")

    @pytest.mark.parametrize("kept", [0, 1, 511, 512, 2000, -1024, -1])
    def test_a_file_that_was_cut_off(
        self, homes: tuple[Looped, Looped], exported: Path, tmp_path: Path, kept: int
    ) -> None:
        (tmp_path / "cut").write_bytes(exported.read_bytes()[:kept])
        require_refused(homes[1], tmp_path / "cut")

    def test_a_file_with_more_behind_its_end(
        self, homes: tuple[Looped, Looped], exported: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "more").write_bytes(exported.read_bytes() + b"\0")
        require_refused(homes[1], tmp_path / "more")

    def test_a_newer_format(
        self, homes: tuple[Looped, Looped], exported: Path, tmp_path: Path
    ) -> None:
        data = exported.read_bytes().replace(b'"version":1', b'"version":2')
        (tmp_path / "newer").write_bytes(data)
        with pytest.raises(InvalidRequest, match="format 2"):
            porter(homes[1]).take_in(TENANT, tmp_path / "newer")

    @settings(
        max_examples=150,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(data=st.data())
    def test_whatever_differs_by_a_bit(
        self, homes: tuple[Looped, Looped], exported: Path, data: st.DataObject
    ) -> None:
        whole = bytearray(exported.read_bytes())
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] ^= 1 << data.draw(st.integers(0, 7))
        other = exported.with_name("flipped")
        other.write_bytes(whole)
        require_refused(homes[1], other)

    @settings(
        max_examples=100,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(data=st.data())
    def test_pieces_put_elsewhere(
        self, homes: tuple[Looped, Looped], exported: Path, data: st.DataObject
    ) -> None:
        whole = exported.read_bytes()
        edges = st.integers(0, len(whole) // 512).map(lambda block: block * 512)
        a, b, c = sorted(data.draw(st.lists(edges, min_size=3, max_size=3)))
        moved = whole[:a] + whole[b:c] + whole[a:b] + whole[c:]
        other = exported.with_name("moved")
        other.write_bytes(moved)
        if moved != whole:
            require_refused(homes[1], other)


class TestForged:
    """Files with checksums that agree, which no export would write."""

    def test_rows_that_are_not_those_of_its_words(
        self, homes: tuple[Looped, Looped], exported: Path
    ) -> None:
        with PortableTars().open(exported) as file:
            session = file.portable.session
            lying = evolve(file.portable, session=evolve(session, spans=session.spans[1:]))
            PortableTars().write(exported.with_name("forged"), lying, file.read)
        require_refused(homes[1], exported.with_name("forged"))

    def test_a_path_with_a_gap(self, homes: tuple[Looped, Looped], exported: Path) -> None:
        with PortableTars().open(exported) as file:
            gapped = evolve(file.portable, segments=file.portable.segments[1:])
            PortableTars().write(
                exported.with_name("forged"), gapped, lambda index: file.read(index + 1)
            )
        require_refused(homes[1], exported.with_name("forged"))

    def test_rows_of_another_shape(self, homes: tuple[Looped, Looped], exported: Path) -> None:
        def cut(payload: Payload) -> Payload:
            tensors = dict(payload.tensors)
            tensors["more"] = tensors.pop(next(iter(tensors)))
            return evolve(payload, tensors=tensors)

        with PortableTars().open(exported) as file:
            read = file.read
            PortableTars().write(
                exported.with_name("forged"), file.portable, lambda index: cut(read(index))
            )
        with pytest.raises(InvalidRequest, match="not those of this model"):
            porter(homes[1]).take_in(TENANT, exported.with_name("forged"))
        assert homes[1].service.agents(TENANT) == ()


class TestKilled:
    def test_an_import_cut_off_half_way_leaves_no_agent(
        self, homes: tuple[Looped, Looped], exported: Path
    ) -> None:
        _, there = homes

        files = PortableTars()
        with files.open(exported) as file:
            count = len(file.portable.segments)
        assert count > 1
        with pytest.raises(OSError, match="gone"):
            Porter(there.loop, BreaksOff()).take_in(TENANT, exported)
        assert there.service.agents(TENANT) == ()
        assert porter(there).take_in(TENANT, exported) == "ada"


class BreaksOff(PortableTars):
    """Files that cannot be read any more after their first segment."""

    @contextmanager
    def open(self, path: Path) -> Iterator[PortableTar]:
        with super().open(path) as file:
            yield cast(PortableTar, _Broken(file))


@frozen(eq=False)
class _Broken:
    file: PortableTar

    @property
    def portable(self) -> Portable:
        return self.file.portable

    def read(self, index: int) -> Payload:
        if index:
            raise OSError("gone")
        return self.file.read(index)


def require_refused(running: Looped, path: Path) -> None:
    before = running.world.disk.segments.nbytes()
    with pytest.raises(InvalidRequest, match="cannot be imported"):
        porter(running).take_in(TENANT, path)
    assert running.service.agents(TENANT) == ()
    assert running.world.disk.segments.nbytes() == before


def _beside_the_path(world: Looped, carried: str, file: Path) -> int:
    """How many rows the file of `carried` holds that its path does not use."""
    Porter(world.loop, PortableTars()).export(TENANT, carried, file)
    with PortableTars().open(file) as opened:
        segments, cursor = opened.portable.segments, opened.portable.session.cursor
    if cursor is None:
        return len(segments)
    ends = [*(one.start for one in segments[1:]), cursor.row]
    return sum(one.stop - end for one, end in zip(segments, ends, strict=True))


@pytest.mark.parametrize("carried", ["ada", "bob"])
def test_what_was_taken_back_is_in_no_file(tmp_path: Path, carried: str) -> None:
    with looped(World()) as here:
        here.loop.wait_open()
        talk = Talk("ada", system=SYSTEM)
        for text in ("one", "two", "my secret words"):
            say(here, talk, text)
        asyncio.run(here.service.fork(TENANT, "ada", "bob"))
        asyncio.run(here.service.rewind(TENANT, carried, 1))
        assert _beside_the_path(here, carried, tmp_path / "file") == 0
