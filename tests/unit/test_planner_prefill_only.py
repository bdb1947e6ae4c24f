"""The planner: turns that say nothing, whose rows the next turn goes on from."""

import pytest

from agentcache.domain.request import Finish, Tier
from agentcache.domain.spec import CacheSpec
from agentcache.domain.turn import TurnState
from tests.unit.domain_strategies import FULL, STATE, WINDOW
from tests.unit.simulated_driver import Drive, drive_of, request, until

every_spec = pytest.mark.parametrize("spec", [FULL, WINDOW, STATE])
PROMPT = [3, 4] * 150


def _warmed(spec: CacheSpec, in_flight: int = 1, **asked: object) -> Drive:
    drive = drive_of(spec, in_flight=in_flight, chunk=64)
    drive.ask(request(PROMPT, "ada", body=300, max_tokens=0, **asked))
    drive.run()
    return drive


@every_spec
@pytest.mark.parametrize("in_flight", [1, 2])
def test_it_ends_when_its_prompt_is_computed(spec: CacheSpec, in_flight: int) -> None:
    told = _warmed(spec, in_flight).told[1]
    assert (told.ended, told.tokens, told.forwarded) == ([Finish.LENGTH], [], 300)


@every_spec
def test_the_next_turn_goes_on_from_all_its_rows(spec: CacheSpec) -> None:
    drive = _warmed(spec)
    drive.ask(request([*PROMPT, 5], "ada", body=300, max_tokens=2))
    drive.run()
    placed = drive.told[2].placed[0]
    assert (placed.cached, placed.tier) == (300, Tier.HOT)


@every_spec
def test_others_go_on_from_its_rows_too(spec: CacheSpec) -> None:
    drive = _warmed(spec)
    drive.ask(request([*PROMPT, 5], body=300, max_tokens=2))
    drive.run()
    assert drive.told[2].placed[0].cached == 300


@every_spec
@pytest.mark.parametrize("rests", [True, False])
def test_what_is_known_already_is_not_computed_again(spec: CacheSpec, rests: bool) -> None:
    drive = _warmed(spec)
    if not rests:
        drive.planner.hot.drop_resting()
    drive.ask(request(PROMPT, "ada", body=300, max_tokens=0))
    drive.run()
    told = drive.told[2]
    assert (told.ended, told.forwarded) == ([Finish.LENGTH], 0)
    assert told.placed[0].cached == 300


def test_without_store_nothing_is_left_of_it() -> None:
    drive = _warmed(FULL, store=False)
    assert drive.told[1].ended == [Finish.LENGTH]
    assert len(drive.planner.lineage) == 0
    drive.ask(request([*PROMPT, 5], "ada", max_tokens=1))
    drive.run()
    assert drive.told[2].placed[0].cached == 0


def test_one_that_is_cancelled_keeps_what_it_computed() -> None:
    drive = drive_of(chunk=64)
    turn = drive.ask(request(PROMPT, "ada", body=300, max_tokens=0))
    until(drive, turn, TurnState.PREFILLING)
    drive.planner.cancel(turn.number)
    drive.run()
    drive.ask(request(PROMPT, "ada", body=300, max_tokens=0))
    drive.run()
    assert drive.told[1].ended == [Finish.CANCELLED]
    assert drive.told[2].placed[0].cached == drive.told[1].forwarded == 64
