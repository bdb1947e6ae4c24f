"""Folders appear whole or not at all."""

import threading
from pathlib import Path

import pytest

from agentcache.adapters.models.staging import Staging


def visible(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.startswith(".lock."))


def nobody_waits() -> None:
    pytest.fail("waited without need")


def build(staging: Staging, name: str, content: str) -> None:
    with staging.exclusive(name, nobody_waits), staging.building(name) as partial:
        (partial / "file").write_text(content)


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "home" / "models")
    with staging.exclusive("a", nobody_waits), staging.building("a") as partial:
        (partial / "scratch").mkdir()
        (partial / "file").write_text("content")
        assert not (tmp_path / "home" / "models" / "a").exists()
    assert visible(tmp_path / "home" / "models") == ["a"]
    made = tmp_path / "home" / "models" / "a"
    assert [path.name for path in made.iterdir()] == ["file"]
    assert made.stat().st_mode & 0o777 == 0o700
    assert (made / "file").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_build_that_fails_leaves_the_folder_as_it_was(
    tmp_path: Path, error: type[BaseException]
) -> None:
    staging = Staging(tmp_path)
    build(staging, "a", "old")
    with pytest.raises(error):
        _build_half(staging, "a", error)
    assert visible(tmp_path) == ["a"]
    assert (tmp_path / "a" / "file").read_text() == "old"


def _build_half(staging: Staging, name: str, error: type[BaseException]) -> None:
    with staging.exclusive(name, nobody_waits), staging.building(name) as partial:
        (partial / "file").write_text("new")
        raise error


def test_a_build_replaces_the_folder_of_its_name(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    build(staging, "a", "old")
    build(staging, "a", "new")
    assert visible(tmp_path) == ["a"]
    assert (tmp_path / "a" / "file").read_text() == "new"


def test_remove_deletes_the_folder_and_only_that(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    build(staging, "a", "x")
    build(staging, "a.b", "x")
    with staging.exclusive("a", nobody_waits):
        staging.remove("a")
    assert visible(tmp_path) == ["a.b"]


def test_sweep_spares_what_is_being_built(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    (tmp_path / ".partial.dead.abc").mkdir()
    with staging.exclusive("a.b", nobody_waits), staging.building("a.b") as partial:
        (partial / "file").touch()
        staging.sweep()
        assert visible(tmp_path) == [partial.name]
    assert visible(tmp_path) == ["a.b"]


def test_the_second_one_is_told_and_waits_for_the_first(tmp_path: Path) -> None:
    staging, order = Staging(tmp_path), list[str]()
    waiting = threading.Event()

    def second() -> None:
        with staging.exclusive("a", waiting.set):
            order.append("second")

    thread = threading.Thread(target=second)
    with staging.exclusive("a", nobody_waits):
        thread.start()
        assert waiting.wait(30)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


def test_other_names_do_not_wait(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    with staging.exclusive("a", nobody_waits), staging.exclusive("b", nobody_waits):
        pass
