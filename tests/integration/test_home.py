"""Who owns a home, who is kept out, and what is there after its owner was killed."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

import pytest

from agentcache.adapters.disk.catalogue import SqliteSessionStore
from agentcache.adapters.disk.home import Home, owner
from agentcache.adapters.disk.lock import Owner
from agentcache.adapters.disk.segments import DiskSegmentStore
from agentcache.domain.errors import HomeError, HomeLocked
from agentcache.ports.session_store import Catalogue
from agentcache.testing.catalogues import content
from agentcache.testing.segment_store import content as payload_content
from tests.integration.home_process import turns
from tests.limits import unwritable

REPOSITORY = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:8000"


@contextmanager
def process(*arguments: str | Path) -> "Iterator[subprocess.Popen[str]]":
    """A `home_process`, killed at the end."""
    command = [sys.executable, "-m", "tests.integration.home_process", *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=REPOSITORY, **pipes) as child:
        try:
            yield child
        finally:
            child.kill()


def test_a_home_is_made_with_all_its_parents_for_its_owner_alone(tmp_path):
    before = os.umask(0o022)
    try:
        with Home.open(tmp_path / "a" / "b") as home:
            DiskSegmentStore.open(home.segments, home.quarantine).close()
            SqliteSessionStore.open(home.catalogue).close()
            entries = [home.path, *home.path.rglob("*")]
            modes = {one: stat.S_IMODE(one.stat().st_mode) for one in entries}
    finally:
        os.umask(before)
    assert modes == {one: 0o700 if one.is_dir() else 0o600 for one in entries}
    assert len(entries) == 8


def test_a_home_that_others_could_read_is_closed_to_them(tmp_path):
    tmp_path.chmod(0o755)
    Home.open(tmp_path).close()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_a_home_can_be_opened_again_after_it_was_closed(tmp_path):
    home = Home.open(tmp_path)
    home.close()
    home.close()
    assert owner(tmp_path) is None
    Home.open(tmp_path).close()


def test_a_home_has_one_owner_even_within_a_process(tmp_path):
    with Home.open(tmp_path), pytest.raises(HomeLocked) as caught:
        Home.open(tmp_path)
    assert caught.value.owner == f"process {os.getpid()}"


def test_the_home_of_a_living_process_is_refused_and_says_whose_it_is(tmp_path):
    with process("hold", tmp_path, ADDRESS) as child:
        assert child.stdout.readline() == "held 0\n"
        assert owner(tmp_path) == Owner(child.pid, ADDRESS)
        with pytest.raises(HomeLocked, match=f"in use by process {child.pid} at {ADDRESS}"):
            Home.open(tmp_path)
        child.stdin.close()
        child.wait()
        assert owner(tmp_path) is None
        Home.open(tmp_path).close()


def test_the_lock_of_a_killed_process_is_gone(tmp_path):
    with process("hold", tmp_path, ADDRESS) as child:
        assert child.stdout.readline() == "held 0\n"
        child.kill()
        child.wait()
        assert owner(tmp_path) is None
        with Home.open(tmp_path):
            assert owner(tmp_path) == Owner(os.getpid())


def test_nobody_owns_a_home_that_is_not_there(tmp_path):
    assert owner(tmp_path / "missing") is None
    assert list(tmp_path.iterdir()) == []


def test_looking_at_the_owner_does_not_disturb_it(tmp_path):
    with Home.open(tmp_path):
        for _ in range(3):
            assert owner(tmp_path) == Owner(os.getpid())
        with pytest.raises(HomeLocked):
            Home.open(tmp_path)


def test_a_home_of_a_newer_format_is_refused_and_given_back(tmp_path):
    Home.open(tmp_path).close()
    (tmp_path / "format").write_text("2\n")
    with pytest.raises(HomeError, match="format 2, this agentcache knows 1"):
        Home.open(tmp_path)
    assert owner(tmp_path) is None
    (tmp_path / "format").write_text("1\n")
    Home.open(tmp_path).close()


@pytest.mark.parametrize("text", ["", "one", "\0"])
def test_a_home_whose_format_is_not_a_number_is_refused(tmp_path, text):
    (tmp_path / "format").write_text(text)
    with pytest.raises(HomeError, match="holds no number"):
        Home.open(tmp_path)


def test_a_file_cannot_be_a_home_nor_hold_one(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "home"):
        with pytest.raises(HomeError, match=r"cannot be used.*Give a directory"):
            Home.open(path)


def test_a_home_that_cannot_be_written_is_refused_with_a_remedy(tmp_path):
    with unwritable(tmp_path):
        for path in (tmp_path, tmp_path / "home"):
            with pytest.raises(HomeError, match=r"cannot be used.*Give a directory"):
                Home.open(path)


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HomeError):
        Home.open(tmp_path / "home")
    assert not (tmp_path / "elsewhere").exists()


def test_free_bytes_are_those_of_the_file_system(tmp_path):
    status = os.statvfs(tmp_path)
    with Home.open(tmp_path) as home:
        assert 0 < home.free_bytes() <= status.f_blocks * status.f_frsize


@pytest.mark.parametrize(
    "last", ["put 0", "commit 0", "done 0", "put 3", "commit 4", "put 9", "done 12"]
)
def test_a_killed_process_leaves_exactly_what_it_had_committed(tmp_path, last):
    with process("work", tmp_path) as child:
        for line in child.stdout:
            if line.strip() == last:
                break
        child.kill()
        said = [last, *child.stdout.read().split("\n")]
    done = sum(line.startswith("done") for line in said) + _done_before(last)
    with Home.open(tmp_path) as home:
        segments = DiskSegmentStore.open(home.segments, home.quarantine)
        with closing(SqliteSessionStore.open(home.catalogue)) as sessions:
            catalogue = sessions.load()
        expected = list(islice(turns(), len(catalogue.segments)))
        # The commit after the last one that was told of may have been made, or not.
        assert len(expected) in (done, done + 1)
        assert content(catalogue) == content(
            Catalogue(
                tuple(segment for segment, _, _ in expected),
                tuple(session for _, _, session in expected[-1:]),
            )
        )
        assert segments.sweep(one.key for one in catalogue.segments) <= 1
        for segment, payload, _ in expected:
            assert payload_content(segments.read(segment)) == payload_content(payload)
        segments.check_integrity()
        files = [path for path in home.segments.rglob("*") if path.is_file()]
        assert len(files) == len(expected)
        segments.close()


def _done_before(last: str) -> int:
    """How many turns were done before the line `last`."""
    return int(last.split()[1])
