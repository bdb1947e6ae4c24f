"""What only a catalogue in a file can suffer (damage, strangers, a full disk), and its thrift."""

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from agentcache.adapters.disk.catalogue import SqliteSessionStore
from agentcache.adapters.disk.schema import VERSION
from agentcache.domain.conversation import Message
from agentcache.domain.errors import HomeError, StoreFull
from agentcache.domain.session import Session, SessionKey
from agentcache.domain.tokens import tokens
from agentcache.ports.session_store import Catalogue, Commit
from agentcache.testing.catalogues import a_segment, a_session, a_span, content
from agentcache.testing.strategies import ROOT
from tests.limits import file_size_limit


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "catalogue.sqlite3"


def made(path: Path, *commits: Commit) -> Catalogue:
    """Make a catalogue of these commits and close it; returns what it holds."""
    with closing(SqliteSessionStore.open(path)) as store:
        for commit in commits:
            store.commit(commit)
        return store.load()


def a_few() -> Commit:
    parent = a_segment([1, 2, 3])
    child = a_segment([4, 5], parent)
    return Commit(add=(parent, child), put=(a_session(at=child), a_session("b", at=parent)))


def long_session(turns: int) -> Session:
    """A session of `turns` turns of 100 tokens each."""
    spans = tuple(a_span(f"turn {n} " * 30, list(range(n, n + 100))) for n in range(turns))
    return Session(SessionKey("t", ROOT, "long"), spans)


def log_bytes(path: Path) -> int:
    """What was written since the catalogue was opened."""
    log = path.with_name(f"{path.name}-wal")
    return log.stat().st_size if log.exists() else 0


def test_a_turn_of_a_long_session_writes_only_what_is_new(path):
    made(path, Commit(put=(long_session(1000),)))
    with closing(SqliteSessionStore.open(path)) as store:
        store.commit(Commit(put=(long_session(1001),)))
        assert 0 < log_bytes(path) < 40_000
        assert content(store.load()) == content(Catalogue((), (long_session(1001),)))


def test_a_turn_that_changes_nothing_but_the_cursor_writes_no_span(path):
    segment = a_segment([1])
    made(path, Commit(add=(segment,), put=(long_session(1000),)))
    after = evolve(long_session(1000), cursor=a_session(at=segment).cursor)
    with closing(SqliteSessionStore.open(path)) as store:
        store.commit(Commit(put=(after,)))
        assert 0 < log_bytes(path) < 20_000
        assert content(store.load())[1] == content(Catalogue((), (after,)))[1]


def long_talk(turns: int) -> Session:
    """A session of `turns` turns with tools, as clients told them."""
    messages = tuple(Message("user", f"question {n} " * 30) for n in range(turns))
    return Session(SessionKey("t", ROOT, "long"), messages=messages, tools="tools " * 5_000)


def test_a_turn_of_a_long_conversation_writes_only_the_messages_that_are_new(path):
    made(path, Commit(put=(long_talk(1000),)))
    with closing(SqliteSessionStore.open(path)) as store:
        store.commit(Commit(put=(long_talk(1001),)))
        assert 0 < log_bytes(path) < 30_000  # less than the tools alone
        assert store.load().sessions == (long_talk(1001),)


def test_a_damaged_message_cuts_its_conversation_there(path):
    made(path, Commit(put=(long_talk(10),)))
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE message SET data = x'7b7d' WHERE position = 6")
        db.commit()
    with closing(SqliteSessionStore.open(path)) as store:
        (session,) = store.load().sessions
    assert session.messages == long_talk(10).messages[:6]


def test_a_forgotten_session_leaves_no_message_behind(path):
    made(path, Commit(put=(long_talk(10),)), Commit(forget=(long_talk(10).key,)))
    with closing(sqlite3.connect(path)) as db:
        (messages,) = db.execute("SELECT count(*) FROM message").fetchone()
        (tools,) = db.execute("SELECT count(*) FROM tools").fetchone()
    assert (messages, tools) == (0, 0)


def test_a_file_of_a_newer_schema_is_refused_and_left_alone(path):
    made(path, a_few())
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(
        HomeError, match=rf"schema 99, this agentcache knows {VERSION}\. Use the newer"
    ):
        SqliteSessionStore.open(path)
    assert path.read_bytes() == before


def test_a_database_of_something_else_is_refused_and_left_alone(path):
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE their (data)")
    before = path.read_bytes()
    with pytest.raises(HomeError, match="not made by agentcache"):
        SqliteSessionStore.open(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "data", [b"no database", os.urandom(10_000), b"SQLite format 3\0" + b"\xff" * 200]
)
def test_a_file_that_is_no_database_is_refused_with_a_remedy(path, data):
    path.write_bytes(data)
    with pytest.raises(HomeError, match=r"damaged .* Move catalogue\.sqlite3 aside"):
        SqliteSessionStore.open(path)


def test_a_second_opener_is_refused(path):
    with closing(SqliteSessionStore.open(path)), pytest.raises(HomeError, match="locked"):
        SqliteSessionStore.open(path)


def test_a_folder_that_is_not_there_is_a_home_error(tmp_path):
    with pytest.raises(HomeError, match="cannot be opened"):
        SqliteSessionStore.open(tmp_path / "missing" / "catalogue.sqlite3")


@given(data=st.data())
def test_a_damaged_file_loads_nothing_that_was_not_committed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "catalogue.sqlite3"
    segments, sessions = content(made(path, a_few(), Commit(put=(long_session(20),))))
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    try:
        with closing(SqliteSessionStore.open(path)) as store:
            found_segments, found_sessions = content(store.load())
    except HomeError:
        return
    assert all(ids == segments[key][1] for key, (_, ids) in found_segments.items())
    for key, (_, ids) in found_sessions.items():
        if key in sessions:
            assert ids == sessions[key][1][: len(ids)]


def test_a_damaged_segment_is_left_out_with_all_that_stands_on_it_and_healed_when_put_again(path):
    change = a_few()
    made(path, change)
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE segment SET ids = ? WHERE start = 0", (b"\1\0\0\0\2\0\0\0\4\0\0\0",))
        db.commit()
    with closing(SqliteSessionStore.open(path)) as store:
        loaded = store.load()
        assert loaded.segments == ()
        assert [session.cursor for session in loaded.sessions] == [None, None]
        store.commit(change)
        assert content(store.load()) == content(Catalogue(change.add, change.put))


def test_a_damaged_span_cuts_its_session_there(path):
    made(path, Commit(put=(long_session(10),)))
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE span SET text = x'ff' WHERE position = 6")
        db.commit()
    with closing(SqliteSessionStore.open(path)) as store:
        (session,) = store.load().sessions
    assert session.spans == long_session(10).spans[:6]


@pytest.mark.parametrize("umask", [0, 0o777])
def test_its_files_are_for_their_owner_alone_whatever_the_umask_is(path, umask):
    before = os.umask(umask)
    try:
        with closing(SqliteSessionStore.open(path)) as store:
            store.commit(a_few())
            names = {one.name for one in path.parent.iterdir()}
            modes = {stat.S_IMODE(one.stat().st_mode) for one in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert names == {"catalogue.sqlite3", "catalogue.sqlite3-wal", "catalogue.reserve"}
    assert modes == {0o600}


def test_a_full_disk_refuses_a_commit_and_keeps_everything_before_it(path):
    made(path, a_few())
    with closing(SqliteSessionStore.open(path)) as store:
        before = content(store.load())
        with file_size_limit(100_000), pytest.raises(StoreFull) as caught:
            store.commit(Commit(put=(long_session(1000),)))
        assert caught.value.needed >= 1000 * 400
        assert content(store.load()) == before
        store.commit(Commit(put=(long_session(1000),)))
        after = content(store.load())
    with closing(SqliteSessionStore.open(path)) as store:
        assert content(store.load()) == after
    assert len(after[1]) == len(before[1]) + 1


def test_only_a_commit_that_makes_room_may_use_the_reserve_which_is_filled_again(path):
    segments = tuple(a_segment([n] * 500) for n in range(200))
    reserve = path.with_suffix(".reserve")
    made(path, Commit(add=segments))
    with closing(SqliteSessionStore.open(path)) as store:
        drop = Commit(drop=tuple(one.key for one in segments))
        taken = reserve.stat().st_size
        with file_size_limit(50_000), pytest.raises(StoreFull):
            store.commit(Commit(add=tuple(a_segment([n] * 500) for n in range(300))))
        assert reserve.stat().st_size == taken >= 1 << 20
        with file_size_limit(50_000), pytest.raises(StoreFull):
            store.commit(drop)  # the limit stands whatever room is made: both attempts fail
        assert not reserve.exists()
        with file_size_limit(1_000_000):
            store.commit(drop)
        assert not reserve.exists()
        store.commit(Commit())
        assert reserve.stat().st_size == taken
        assert store.load() == Catalogue()


def test_a_commit_that_cannot_be_made_because_of_its_values_changes_nothing(path):
    with closing(SqliteSessionStore.open(path)) as store:
        store.commit(a_few())
        before = content(store.load())
        with pytest.raises(OverflowError):
            store.commit(Commit(put=(a_session("c"), evolve(a_session("d"), generation=2**70))))
        assert content(store.load()) == before
        store.commit(Commit(put=(a_session("c"),)))
        assert len(store.load().sessions) == 3


def test_a_store_that_was_not_closed_is_opened_with_all_that_was_committed(path, tmp_path):
    with closing(SqliteSessionStore.open(path)) as store:
        store.commit(a_few())
        copy = tmp_path / "copy"
        copy.mkdir()
        for one in tmp_path.glob("catalogue.*"):
            (copy / one.name).write_bytes(one.read_bytes())
        expected = content(store.load())
    with closing(SqliteSessionStore.open(copy / path.name)) as store:
        assert content(store.load()) == expected


def test_ids_of_spans_are_stored_as_they_are(path):
    session = evolve(a_session(), spans=(a_span("x", []), a_span("", [2**32 - 1, 0])))
    with closing(SqliteSessionStore.open(path)) as store:
        store.commit(Commit(put=(session,)))
        assert [span.ids for span in store.load().sessions[0].spans] == [
            tokens([]),
            tokens([2**32 - 1, 0]),
        ]
