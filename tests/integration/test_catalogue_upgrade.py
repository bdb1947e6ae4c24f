"""Catalogues that an older agentcache made: `homes/` holds files that it left behind."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from attrs import evolve, frozen

from agentcache.adapters.disk.catalogue import SqliteSessionStore
from agentcache.adapters.disk.schema import UPGRADES, VERSION
from agentcache.domain.conversation import Message, Outcome
from agentcache.domain.errors import HomeError
from agentcache.domain.session import Session
from agentcache.domain.spans import SpanKind
from agentcache.domain.trace import Trace
from agentcache.ports.session_store import Commit
from tests.limits import file_size_limit

HOMES = Path(__file__).with_name("homes")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A copy of a catalogue of version 1 with two sessions."""
    return Path(shutil.copy(HOMES / "catalogue-v1.sqlite3", tmp_path / "catalogue.sqlite3"))


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


def test_all_that_a_catalogue_of_version_1_holds_is_there(path: Path) -> None:
    with closing(SqliteSessionStore.open(path)) as store:
        catalogue = store.load()
    assert [one.ids.tolist() for one in catalogue.segments] == [[1, 2, 3], [4, 5]]
    ada, bob = catalogue.sessions
    assert (ada.name, ada.pinned, ada.created, ada.used, ada.generation) == ("ada", 1, 1.5, 2.5, 7)
    assert (ada.cursor.row, ada.tools_digest) == (5, b"tools") if ada.cursor else False
    assert [span.text for span in ada.spans] == ["<|user|>", "héllo\0", "<|assistant|>", "hi"]
    assert [span.ids.tolist() for span in ada.spans] == [[1], [2, 3], [4], [5]]
    assert ada.spans[1].kind is SpanKind.CONTENT
    assert (bob.name, bob.parent, bob.cursor and bob.cursor.row) == ("bob", "ada", 3)
    assert (ada.messages, ada.tools, ada.expires, ada.trace) == ((), "", None, None)


def test_it_takes_what_only_the_newer_version_knows(path: Path) -> None:
    with closing(SqliteSessionStore.open(path)) as store:
        ada, bob = store.load().sessions
        after = evolve(ada, messages=(Message("user", "hi"),), tools="[]", expires=9.0)
        after = evolve(after, trace=Trace(5, (((1, -0.5), (2, -2.0)),)))
        store.commit(Commit(put=(after,)))
    assert version_of(path) == VERSION
    with closing(SqliteSessionStore.open(path)) as store:
        assert store.load().sessions == (after, bob)


def test_its_secret_stays_the_same(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        (before,) = db.execute("SELECT salt FROM home").fetchone()
    with closing(SqliteSessionStore.open(path)) as store:
        assert store.salt() == before


def test_an_upgrade_that_finds_no_room_leaves_it_as_it_was(path: Path) -> None:
    with file_size_limit(8_000), pytest.raises(HomeError, match="room"):
        SqliteSessionStore.open(path)
    assert version_of(path) == 1
    assert len(sessions_of(path)) == 2


def test_an_upgrade_that_breaks_half_way_leaves_it_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agentcache.adapters.disk import schema

    broken = (*schema.UPGRADES[2], "a statement that is none")
    with monkeypatch.context() as patch:
        patch.setitem(schema.UPGRADES, 2, broken)
        with pytest.raises(HomeError):
            SqliteSessionStore.open(path)
    assert version_of(path) == 1
    assert len(sessions_of(path)) == 2


def test_a_catalogue_of_version_2_is_taken_a_step_further(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        for statement in UPGRADES[2]:
            db.execute(statement)
        db.execute("PRAGMA user_version = 2")
        db.commit()
    ada, bob = sessions_of(path)
    assert (ada.name, bob.name, ada.trace, version_of(path)) == ("ada", "bob", None, VERSION)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 9, b"\0" * 9, b"\0" * 400, b"text"])
def test_a_trace_that_is_none_is_no_trace_and_hurts_nobody(path: Path, damage: bytes) -> None:
    before = sessions_of(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE session SET trace = ?", (damage,))
        db.commit()
    assert sessions_of(path) == before


def sessions_of(path: Path) -> tuple[Session, ...]:
    with closing(SqliteSessionStore.open(path)) as store:
        return store.load().sessions


@frozen
class NewerOutcome(Outcome):
    """An outcome as a newer agentcache may know it."""

    more: int = 0


def test_what_a_newer_version_tells_of_an_outcome_is_passed_over(path: Path) -> None:
    outcome = ("stop", 1.0, 2.0, 3, 2, 1)
    answer = Message("assistant", "hi", turn="t", outcome=NewerOutcome(*outcome, more=7))
    with closing(SqliteSessionStore.open(path)) as store:
        ada, _bob = store.load().sessions
        store.commit(Commit(put=(evolve(ada, messages=(answer,)),)))
    with closing(SqliteSessionStore.open(path)) as store:
        [found] = store.load().sessions[0].messages
    assert (found, found.outcome) == (answer, Outcome(*outcome))
