"""Turns of models with every kind of cache, over planner, keeper and fetcher."""

import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest

from agentcache.domain.notices import Limits
from agentcache.testing.driving import GREEDY
from tests.listening import Logits, listening
from tests.shape_world import ShapeWorld
from tests.talks import Said, Talk
from tests.tiny_shapes import SHAPES

_TEXTS = ("one", "a second question", "what else?", "go on, please", "the last one")


@pytest.fixture(scope="module", params=SHAPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SHAPES[request.param].made(tmp_path_factory.mktemp("model") / request.param)


@pytest.fixture
def world(folder: Path) -> Iterator[ShapeWorld]:
    with ShapeWorld(folder=folder) as opened:
        yield opened


def _talk() -> Talk:
    return Talk("ann", system="You are a test.")


def _heard(world: ShapeWorld, between: Callable[[ShapeWorld], None]) -> list[tuple[Said, Logits]]:
    """A conversation, with something done to the world between its turns."""
    talk, found = _talk(), []
    for text in _TEXTS:
        with listening() as heard:
            said, forwarded, due = world.turn(talk, text)
        assert forwarded == due
        found.append((said, np.concatenate(heard)))
        between(world)
    return found


PLACES: dict[str, Callable[[ShapeWorld], None]] = {
    "from RAM": lambda world: world.rest_hot(),
    "from disk": lambda world: world.go_cold(),
    "after a restart": lambda world: world.restart(),
    "after kill -9": lambda world: world.kill(),
}


def test_wherever_its_memory_comes_from_an_agent_says_the_same_to_the_bit(folder: Path) -> None:
    with ShapeWorld(folder=folder) as world:
        live = _heard(world, lambda _: None)
    for place, between in PLACES.items():
        with ShapeWorld(folder=folder) as world:
            found = _heard(world, between)
        for (said, logits), (other, others) in zip(live, found, strict=True):
            assert said.text == other.text, place
            assert np.array_equal(logits, others), place


def test_only_what_no_segment_holds_is_forwarded(world: ShapeWorld) -> None:
    """Agents that part from each other at random places, from RAM, disk and nowhere."""
    chance = random.Random(5)
    talks, restored = [_talk()], 0
    for number in range(12):
        talk = deepcopy(chance.choice(talks))
        talk.name = f"agent {number}"
        del talk.history[2 * chance.randint(0, len(talk.history) // 2) :]
        text = "".join(chance.choices("ab", k=chance.choice((3, 30, 120))))
        said, forwarded, due = world.turn(talk, text, tokens=chance.randint(1, 9))
        assert forwarded == due
        restored += 0 < due < len(said.request.prompt)
        talks.append(talk)
        chance.choice([world.rest_hot, world.go_cold, lambda: None])()
    assert restored > 3


def test_a_fork_and_its_parent_go_on_each_by_itself(world: ShapeWorld) -> None:
    parent = _talk()
    world.turn(parent, "one")
    fork, alone = deepcopy(parent), deepcopy(parent)
    fork.name, alone.name = "fork", "alone"
    world.rest_hot()
    said, forwarded, _ = world.turn(fork, "the fork asks this")
    world.turn(parent, "its parent that")
    world.rest_hot()
    again, _, _ = world.turn(alone, "the fork asks this")
    assert said.admitted.cached
    assert forwarded < said.admitted.prompt
    assert again.text == said.text


def test_a_rewound_agent_goes_on_as_if_the_turn_had_never_been(world: ShapeWorld) -> None:
    talk = _talk()
    world.turn(talk, "one")
    kept = deepcopy(talk)
    first, _, _ = world.turn(talk, "a second question")
    world.go_cold()
    second, forwarded, due = world.turn(kept, "a second question")
    assert second.text == first.text
    assert forwarded == due < second.admitted.prompt


def test_agents_in_one_batch_say_what_each_says_alone(folder: Path) -> None:
    texts = ["short", "a much longer question " * 3, "another"]
    alone = []
    for n, text in enumerate(texts):
        with ShapeWorld(folder=folder) as world:
            said, _, _ = world.turn(Talk(f"agent {n}"), text, tokens=12)
        alone.append(said.text)
    with ShapeWorld(folder=folder, limits=Limits(batch=3)) as world:
        begun = [
            world.begin(Talk(f"agent {n}").ask(text, max_tokens=12, sampling=GREEDY))
            for n, text in enumerate(texts)
        ]
        world.settle()
        assert [said.text for said in begun] == alone
