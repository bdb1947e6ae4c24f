"""Homes that somebody has edited, moved, damaged, filled up or made read-only."""

import errno
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from random import Random

import pytest

from agentcache.adapters.disk.catalogue import SqliteSessionStore
from agentcache.adapters.disk.home import Home, owner
from agentcache.adapters.disk.schema import VERSION
from agentcache.adapters.disk.segments import DiskSegmentStore
from agentcache.domain.errors import HomeError, SegmentCorrupt
from agentcache.domain.session import SessionKey
from tests.faults import Fault
from tests.faults.lives import ROOT, Kept, Lives, ended
from tests.limits import file_size_limit, unwritable

ANN = SessionKey("tenant", ROOT, "ann")


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Lives]:
    """A home with two turns of an agent, the second of which is only in the log."""
    with ended(Lives.at(tmp_path / "home")) as made:
        made.open()
        made.turn("ann", [2, 3], None)
        made.close()
        made.open()
        made.turn("ann", [4], made.promised.sessions[ANN].cursor)
        made.kill()
        yield made


def catalogue(lives: Lives) -> Path:
    return lives.medium.home / "catalogue.sqlite3"


def edited(lives: Lives, *statements: str) -> None:
    with closing(sqlite3.connect(catalogue(lives), isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


# -- room and permissions ------------------------------------------------------------------------


def test_a_home_on_a_full_disk_can_be_opened_and_read_but_not_written(lives):
    with file_size_limit(512):  # the note of the owner is overwritten in place
        lives.open()
        lives.check_files()
        assert not lives.turn("bob", [3], None)
        assert not lives.turn("ann", [1], lives.promised.sessions[ANN].cursor)
        lives.check()
        lives.check_files()
    assert lives.turn("bob", [3], None)
    lives.close()
    lives.open()
    lives.check_files()


def test_a_home_cannot_be_made_on_a_full_disk_but_where_it_was_to_be_when_there_is_room(tmp_path):
    with ended(Lives.at(tmp_path / "home")) as lives:
        for limit in (0, 600, 6_000):
            with file_size_limit(limit), pytest.raises(HomeError, match="cannot be"):
                lives.open()
            assert not lives.is_open
        lives.open()
        assert lives.turn("ann", [1], None)
        lives.check_files()


def test_a_home_that_belongs_to_somebody_else_is_refused_and_left_alone(lives):
    home = lives.medium.home
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    with unwritable(home), pytest.raises(HomeError, match=r"cannot be used.*Give a directory"):
        Home.open(home)
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before
    lives.open()
    lives.check_files()


def test_a_disk_that_becomes_read_only_refuses_new_turns_and_gives_old_ones(lives):
    lives.open()
    lives.medium.plan(Fault(errno.EROFS), times=10_000)
    assert not lives.turn("bob", [2], None)
    lives.check()
    lives.check_files()
    lives.close()
    with pytest.raises(HomeError, match="Read-only file system"):
        lives.open()
    lives.medium.recover()
    lives.open()
    assert lives.turn("bob", [2], None)
    lives.check_files()


# -- versions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0", "2", "999999999999"])
def test_a_home_of_another_format_is_refused_by_both_versions_and_left_alone(lives, version):
    """There is no older format yet that could be upgraded."""
    home = lives.medium.home
    (home / "format").write_text(f"{version}\n")
    with pytest.raises(HomeError, match=f"format {version}, this agentcache knows 1. Use the"):
        lives.open()
    assert owner(home) is None
    (home / "format").write_text("1\n")
    lives.open()
    lives.check_files()


def test_a_catalogue_of_an_older_schema_is_refused_and_left_alone(lives):
    edited(lives, "PRAGMA user_version = 0")
    before = catalogue(lives).read_bytes()
    with pytest.raises(HomeError, match="not made by agentcache"):
        lives.open()
    assert catalogue(lives).read_bytes() == before
    edited(lives, f"PRAGMA user_version = {VERSION}")
    lives.open()
    lives.check_files()


# -- edited by hand ------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [-1, 0, 10**18])
def test_a_cursor_that_was_moved_out_of_its_segment_is_none(lives, row):
    edited(lives, f"UPDATE session SET row = {row}")
    (session,) = lives.begin().sessions.values()
    assert session.cursor is None
    assert session.spans == lives.promised.sessions[ANN].spans


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE span",
        "DROP TABLE home",
        "DELETE FROM home",
        "UPDATE home SET salt = x'00'",
        "ALTER TABLE session RENAME COLUMN row TO line",
    ],
)
def test_a_catalogue_that_lacks_something_is_refused_with_a_remedy(lives, statement):
    edited(lives, statement)
    with pytest.raises(HomeError, match=r"damaged .*Move catalogue\.sqlite3 aside"):
        lives.open()
    assert owner(lives.medium.home) is None


def test_segments_whose_parents_were_deleted_by_hand_are_forgotten_and_swept(lives):
    edited(lives, "DELETE FROM segment WHERE start = 0")
    kept = lives.begin()
    assert kept.segments == {}
    assert [one.cursor for one in kept.sessions.values()] == [None]
    assert not list((lives.medium.home / "segments").rglob("*.safetensors"))


def test_texts_and_ids_that_were_edited_end_what_is_known_of_a_session(lives):
    edited(lives, "UPDATE span SET text = x'f0f0' WHERE position = 1")
    (session,) = lives.begin().sessions.values()
    assert session.spans == lives.promised.sessions[ANN].spans[:1]


# -- damaged -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_a_log_with_a_wrong_byte_holds_nothing_that_was_not_committed(lives, seed):
    log, chance = catalogue(lives).with_name("catalogue.sqlite3-wal"), Random(seed)
    data = bytearray(log.read_bytes())
    data[chance.randrange(len(data))] ^= chance.randrange(1, 256)
    log.write_bytes(data)
    kept = lives.begin()
    assert kept.segments.items() <= lives.promised.segments.items()
    (session,), (promised,) = kept.sessions.values(), lives.promised.sessions.values()
    assert session.spans == promised.spans[: len(session.spans)]
    for segment in kept.segments.values():
        lives.segments.read(segment)
    lives.check()


def test_a_log_that_was_deleted_takes_only_its_turns_with_it(lives):
    catalogue(lives).with_name("catalogue.sqlite3-wal").unlink()
    kept = lives.begin()
    assert [len(one) for one in kept.segments.values()] == [2, 3]
    lives.check()


def test_a_catalogue_that_was_deleted_leaves_an_empty_home(lives):
    for path in lives.medium.home.glob("catalogue.*"):
        path.unlink()
    assert lives.begin() == Kept()
    assert lives.segments.nbytes() == 0
    lives.check()


# -- what stands where files should --------------------------------------------------------------


def a_folder(path: Path) -> None:
    path.mkdir()


def a_link_to_nowhere(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def terabytes(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


STRANGE = (a_folder, a_link_to_nowhere, os.mkfifo, terabytes)
NAMES = ("format", "catalogue.sqlite3", "lock", "segments", "quarantine")
# A link is replaced, or followed; of a lock only its first bytes matter; folders there shall be.
ACCEPTED = {
    ("format", a_link_to_nowhere),
    ("catalogue.sqlite3", a_link_to_nowhere),
    ("lock", terabytes),
    ("segments", a_folder),
    ("quarantine", a_folder),
}


@pytest.mark.timeout(60)  # who waits for somebody to write into a pipe waits for ever
@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_ours_is_told_at_once_and_left_there(tmp_path, name, strange):
    path = tmp_path / name
    strange(path)
    before = stat.S_IFMT(path.lstat().st_mode)
    expected = nullcontext() if (name, strange) in ACCEPTED else pytest.raises((HomeError, OSError))
    with expected, Home.open(tmp_path) as home:
        DiskSegmentStore.open(home.segments, home.quarantine).close()
        SqliteSessionStore.open(home.catalogue).close()
    assert owner(tmp_path) is None
    if (name, strange) not in ACCEPTED:
        assert stat.S_IFMT(path.lstat().st_mode) == before


def test_a_home_may_be_a_link_to_another_disk(lives, tmp_path):
    home = lives.medium.home
    moved = home.rename(tmp_path / "moved")
    home.symlink_to(moved)
    lives.open()
    lives.check_files()


def test_a_folder_of_segments_that_is_a_link_is_swept_of_nothing_but_segments(lives, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "somebody's.tmp").write_bytes(b"precious")
    free = next(n for n in range(256) if not (lives.medium.home / "segments" / f"{n:02x}").exists())
    (lives.medium.home / "segments" / f"{free:02x}").symlink_to(elsewhere)
    lives.open()
    lives.check()
    assert (elsewhere / "somebody's.tmp").read_bytes() == b"precious"


def test_a_segment_swollen_to_terabytes_is_counted_refused_and_removed(lives):
    lives.open()
    segment = lives.promised.leaves()[0]
    path = next(lives.segments.folder.rglob(f"{segment.key.hex()}*"))
    os.truncate(path, 1 << 40)
    lives.kill()
    lives.open()
    assert lives.segments.nbytes() > 1 << 40
    with pytest.raises(SegmentCorrupt):
        lives.segments.read(segment)
    assert lives.evict(segment, corrupt=True)
    assert lives.segments.nbytes() < 1 << 20
    lives.check()
    lives.check_files()
