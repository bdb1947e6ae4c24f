"""Every change that is made to a home, struck in turn: by errors, a kill, a power cut."""

import errno
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from random import Random

import pytest

from agentcache.domain.errors import HomeError, StoreFull
from agentcache.domain.session import Cursor, SessionKey
from tests.faults import Fault
from tests.faults.lives import ROOT, Lives, ProcessEnded, ended

ERRORS = {"no room": errno.ENOSPC, "a bad medium": errno.EIO}
Days = Generator[tuple[int, Lives], None, None]


def a_day(lives: Lives, patience: bool = True) -> None:
    """Open a home, and do everything that is ever done to one; without patience until it fails."""
    lives.open()
    for work in WORK:
        kept = work(lives)
        lives.check()
        if not (kept or patience):
            break


def _turn(name: str, sizes: list[int], after: str) -> Callable[[Lives], bool]:
    return lambda lives: lives.turn(name, sizes, _cursor(lives, after))


def _evict(corrupt: bool) -> Callable[[Lives], bool]:
    return lambda lives: all(lives.evict(one, corrupt) for one in lives.promised.leaves()[:1])


def _cursor(lives: Lives, name: str) -> Cursor | None:
    session = lives.promised.sessions.get(SessionKey("tenant", ROOT, name))
    return session and session.cursor


def _merge(lives: Lives) -> bool:
    return all(lives.merge(run) for run in lives.promised.runs()[:1])


WORK = (
    _turn("ann", [2, 3], "ann"),
    _turn("ann", [4], "ann"),
    _turn("bob", [1], "ann"),
    _merge,
    _evict(corrupt=False),
    _evict(corrupt=True),
    _evict(corrupt=True),
    _turn("ann", [5, 1], "ann"),
    _merge,
    lambda lives: lives.forget(SessionKey("tenant", ROOT, "bob")),
)


def attempt(lives: Lives, patience: bool = True) -> None:
    """A day that may go wrong, but not other than home and stores may say so."""
    try:
        a_day(lives, patience)
    except ProcessEnded:
        assert lives.is_open
    except (HomeError, StoreFull, OSError):
        assert not lives.is_open


def look(lives: Lives) -> None:
    """Whoever opens the home finds what was promised, and nothing else."""
    lives.open()
    lives.check()
    lives.check_files()


@pytest.fixture(scope="module")
def moments(tmp_path_factory) -> list[int]:
    """The numbers of the changes of a day; of writes in a row the first and the last."""
    with ended(Lives.at(tmp_path_factory.mktemp("day") / "home")) as lives:
        a_day(lives)
        lives.close()
        changes = ["", *lives.medium.changes, ""]
    runs = zip(changes, changes[1:], changes[2:], strict=False)
    return [number for number, three in enumerate(runs) if three != ("write",) * 3]


@pytest.fixture
def days(tmp_path: Path, moments: list[int]) -> Iterator[Days]:
    """For every moment a new home, in which something is to happen then."""

    def each() -> Days:
        for number in moments:
            with ended(Lives.at(tmp_path / f"{number}")) as lives:
                yield number, lives

    found = each()
    yield found
    found.close()


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_at_any_change_loses_nothing_and_leaves_nothing(days, name):
    chance = Random(0)
    for number, lives in days:
        lives.medium.plan(Fault(ERRORS[name], half=chance.random() < 0.5), after=number)
        attempt(lives)
        lives.close()
        lives.medium.recover()
        look(lives)


def test_a_short_write_is_gone_on_with(days):
    for number, lives in days:
        lives.medium.plan(Fault(short=True), after=number)
        attempt(lives)
        lives.close()
        look(lives)


@pytest.mark.parametrize("name", ERRORS)
def test_errors_at_two_changes_in_a_row_and_a_power_cut_in_the_evening_lose_nothing(days, name):
    chance = Random(1)
    for number, lives in days:
        fault = Fault(ERRORS[name], half=chance.random() < 0.5)
        lives.medium.plan(fault, after=number, times=2)
        attempt(lives)
        lives.cut_power(chance)
        look(lives)


@pytest.mark.parametrize("end", ["kill", "cut_power"])
@pytest.mark.parametrize("name", ERRORS)
def test_what_could_not_be_done_is_not_there_after_an_end_right_after_it(days, name, end):
    chance = Random(4)
    for number, lives in days:
        lives.medium.plan(Fault(ERRORS[name], half=chance.random() < 0.5), after=number)
        attempt(lives, patience=False)
        lives.kill() if end == "kill" else lives.cut_power(chance)
        look(lives)


def test_a_process_killed_at_any_change_leaves_what_it_had_told_and_nothing_half_done(days):
    chance = Random(2)
    for number, lives in days:
        lives.medium.plan(Fault(half=chance.random() < 0.5), after=number)
        attempt(lives)
        lives.kill()
        look(lives)


def test_what_a_killed_process_left_unsynced_does_no_harm_to_the_next_one(days):
    chance = Random(3)
    for number, lives in days:
        lives.medium.plan(Fault(), after=number)
        attempt(lives)
        lives.kill()
        a_day(lives)
        lives.cut_power(chance)
        look(lives)


@pytest.mark.parametrize("seed", range(6))
def test_a_folder_that_a_killed_process_had_just_made_is_as_safe_as_any(tmp_path, seed):
    with ended(Lives.at(tmp_path / "home")) as lives:
        lives.open()
        lives.medium.plan(Fault(), after=1)  # the first change of a turn is to make a folder
        with pytest.raises(ProcessEnded):
            lives.turn("ann", [1], None)
        assert lives.medium.changes[-2:] == ["mkdir", "chmod"]
        lives.kill()
        lives.made = 0  # they ask the same again, which gives the same segment
        lives.open()
        assert lives.turn("ann", [1], None)
        lives.cut_power(Random(seed))
        look(lives)


@pytest.mark.parametrize("seed", range(2))
def test_a_power_cut_at_any_change_loses_nothing_that_was_told(days, seed):
    chance = Random(seed)
    for number, lives in days:
        lives.medium.plan(Fault(half=chance.random() < 0.5), after=number)
        attempt(lives)
        lives.cut_power(chance)
        look(lives)
