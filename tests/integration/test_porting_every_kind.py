"""Agents of every codec and of every kind of cache, carried to another home."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path

import pytest
from attrs import define, evolve, field

from agentcache.adapters.codecs import codec
from agentcache.adapters.disk.portable import PortableTars
from agentcache.assembly import Assembly
from agentcache.conductor import Conductor
from agentcache.porting import Porter
from agentcache.roots import Codecs
from agentcache.testing.driving import GREEDY
from tests.shape_world import ShapeWorld
from tests.talks import Talk
from tests.tiny_shapes import SHAPES
from tests.unit.test_service import heard
from tests.world import Looped, looped

TENANT = "default"
KINDS = [
    *(("llama", name) for name in ("native", "f16", "q8", "q4", "k8v4")),
    *((shape, name) for shape in SHAPES if shape != "llama" for name in ("native",)),
    *((shape, "q8") for shape in ("gemma3_text", "qwen3_next", "falcon_h1", "deepseek_v2")),
]


@define(eq=False)
class CodedWorld(ShapeWorld):
    """A world whose rows are kept as `coded` says."""

    coded: str = field(kw_only=True)

    def assembly(self) -> Assembly:
        return evolve(super().assembly(), codecs=Codecs(codec(self.coded), {}))


@pytest.fixture(params=KINDS, ids="-".join)
def homes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Looped, Looped]]:
    shape, coded = request.param
    folder = SHAPES[shape].made(tmp_path_factory.mktemp("model") / shape)
    with ExitStack() as stack:
        worlds = (CodedWorld(folder=folder, coded=coded) for _ in range(2))
        here, there = (stack.enter_context(looped(world)) for world in worlds)
        here.loop.wait_open()
        there.loop.wait_open()
        yield here, there


def say(home: Looped, talk: Talk, text: str) -> tuple[str, int]:
    """What the agent says, and how many tokens went through the model for it."""

    async def turn() -> str:
        begun = await home.service.begin(talk.ask(text, max_tokens=6, sampling=GREEDY))
        return (await heard(begun))[0]

    before = home.world.telemetry.tokens_forwarded
    talk.hear(asyncio.run(turn()))
    return talk.history[-1].content, home.world.telemetry.tokens_forwarded - before


def go_cold(conductor: Conductor) -> None:
    conductor.planner.hot.drop_resting()


def test_it_says_the_same_there_and_as_many_tokens_pass_the_model(
    homes: tuple[Looped, Looped], tmp_path: Path
) -> None:
    here, there = homes
    talk = Talk("ann", system="You are a test of some length, and you know it.")
    for text in ("one", "a second question", "what else?"):
        say(here, talk, text)
    Porter(here.loop, PortableTars()).export(TENANT, "ann", tmp_path / "ann")
    here.loop.ask(go_cold).result()
    at_home = say(here, deepcopy(talk), "go on")
    Porter(there.loop, PortableTars()).take_in(TENANT, tmp_path / "ann")
    assert say(there, talk, "go on") == at_home
    assert at_home[1] < there.service.agent(TENANT, "ann").tokens / 2
