"""Models are made once, whole or not at all, whatever happens to the process that makes them."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from agentcache.adapters.models import DEFAULT_MODEL, LocalModelSource
from agentcache.adapters.models.hub import Hub
from agentcache.domain.errors import ModelError
from agentcache.ports.model_source import ModelSource, Stage
from tests.tiny_gguf import TinyGguf, weights


class Stages:
    """A Progress that keeps which stages it saw."""

    def __init__(self) -> None:
        self.seen: list[Stage] = []

    def __call__(self, _done: int, _total: int | None, stage: Stage, /) -> None:
        if stage not in self.seen:
            self.seen.append(stage)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def source(home: Path, tmp_path: Path) -> ModelSource:
    return LocalModelSource(home, hub=Hub(cache=tmp_path / "hub", endpoint="http://127.0.0.1:9"))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return TinyGguf().write(tmp_path / "my model.gguf")


def kept(home: Path) -> list[str]:
    """What is in the home's model folder, but for locks and the memo of digests."""
    names = (path.name for path in (home / "models").glob("*"))
    return sorted(name for name in names if not name.startswith(".lock.") and name != MEMO)


MEMO = "digests.json"


def test_a_gguf_is_converted_once_wherever_it_is_moved(
    source: ModelSource, home: Path, tmp_path: Path, tiny: Path
) -> None:
    first, second = Stages(), Stages()
    made = source.resolve(str(tiny), first)
    (tmp_path / "elsewhere").mkdir()
    moved = source.resolve(str(tiny.rename(tmp_path / "elsewhere" / tiny.name)), second)
    assert "converting" in first.seen
    assert "converting" not in second.seen
    assert (moved.path, moved.digest) == (made.path, made.digest)
    assert kept(home) == [made.path.name]


def test_a_gguf_with_other_content_under_the_same_name_is_another_model(
    source: ModelSource, home: Path, tiny: Path
) -> None:
    made = source.resolve(str(tiny), Stages())
    other = source.resolve(str(TinyGguf(weights=weights(seed=1)).write(tiny)), Stages())
    assert other.digest != made.digest
    assert kept(home) == sorted([made.path.name, other.path.name])


def test_another_dtype_is_another_model_in_the_same_place(home: Path, tiny: Path) -> None:
    full = LocalModelSource(home, dtype="float32").resolve(str(tiny), Stages())
    half = LocalModelSource(home, dtype="float16").resolve(str(tiny), Stages())
    assert half.path == full.path
    assert half.digest != full.digest
    assert kept(home) == [half.path.name]


def test_a_converted_model_that_was_damaged_is_made_again(source: ModelSource, tiny: Path) -> None:
    made = source.resolve(str(tiny), Stages())
    (made.path / "model.safetensors").write_bytes(b"")
    again = Stages()
    assert source.resolve(str(tiny), again) == made
    assert "converting" in again.seen


def test_what_was_made_is_listed_resolved_by_name_and_removed(
    source: ModelSource, home: Path, tiny: Path
) -> None:
    made = source.resolve(str(tiny), Stages())
    (record,) = source.list()
    assert record.path == made.path
    assert record.nbytes == sum(path.stat().st_size for path in made.path.iterdir())
    assert source.resolve(record.ref, Stages()).digest == made.digest
    assert source.remove(record.ref) == record.nbytes
    assert kept(home) == []
    assert source.list() == ()


def test_a_gguf_can_be_removed_by_its_path_and_itself_stays(
    source: ModelSource, home: Path, tiny: Path
) -> None:
    source.resolve(str(tiny), Stages())
    source.remove(str(tiny))
    assert kept(home) == []
    assert tiny.exists()


def test_a_local_folder_is_used_where_it_is_and_never_removed(
    source: ModelSource, home: Path, tmp_path: Path, tiny: Path
) -> None:
    mine = source.resolve(str(tiny), Stages()).path.rename(tmp_path / "mine")
    assert source.resolve(str(mine), Stages()).path == mine
    with pytest.raises(ModelError, match="folder of yours"):
        source.remove(str(mine))
    assert mine.exists()


def test_a_conversion_that_fails_leaves_nothing(
    source: ModelSource, home: Path, tmp_path: Path
) -> None:
    tiny = TinyGguf()
    tiny.weights["output_norm.weight"][0] = float("nan")
    bad = tiny.write(tmp_path / "bad.gguf")
    with pytest.raises(ModelError, match="finite"):
        source.resolve(str(bad), Stages())
    assert kept(home) == []


def test_a_progress_that_raises_ends_the_conversion_and_leaves_nothing(
    source: ModelSource, home: Path, tiny: Path
) -> None:
    def cancel(_done: int, _total: int | None, _stage: Stage, /) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        source.resolve(str(tiny), cancel)
    assert kept(home) == []


@pytest.mark.parametrize(
    "ref", ["nope", "./nope", "/nope/nope/nope", "..", "", "a/b/c", "nope.gguf"]
)
def test_an_unknown_model_is_one_clear_error(source: ModelSource, ref: str) -> None:
    with pytest.raises(ModelError) as refused:
        source.resolve(ref, Stages())
    assert refused.value.ref == ref
    assert refused.value.remedy


def test_a_file_that_is_no_gguf_is_refused(source: ModelSource, home: Path, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"PK\3\4")
    with pytest.raises(ModelError, match="no GGUF"):
        source.resolve(str(tmp_path / "model.bin"), Stages())
    assert kept(home) == []


def test_what_is_not_kept_cannot_be_removed(source: ModelSource) -> None:
    for ref in (DEFAULT_MODEL, "nope", "../home", "org/name", ".lock.x"):
        with pytest.raises(ModelError, match="not kept"):
            source.remove(ref)


def test_a_home_that_cannot_be_written_is_one_clear_error(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"Not a directory|File exists"):
        LocalModelSource(tmp_path / "file").resolve(str(tiny), Stages())


@contextmanager
def resolver(home: Path, ref: Path, stage: str) -> Iterator[subprocess.Popen[str]]:
    script = Path(__file__).with_name("resolver.py")
    command = [sys.executable, str(script), str(home), str(ref), stage]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def let_go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_killed_conversion_leaves_nothing_half_made_and_the_next_one_works(
    source: ModelSource, home: Path, tiny: Path
) -> None:
    with resolver(home, tiny, "converting") as process:
        assert line_of(process) == "at converting"
        process.kill()
        process.wait()
    (partial,) = kept(home)
    assert partial.startswith(".partial.")
    assert (home / "models" / partial / "model.safetensors").exists()
    assert source.list() == ()
    made = source.resolve(str(tiny), Stages())
    assert kept(home) == [made.path.name]


def test_leftovers_of_one_model_are_swept_when_another_is_resolved(
    source: ModelSource, home: Path, tmp_path: Path, tiny: Path
) -> None:
    with resolver(home, tiny, "converting") as process:
        assert line_of(process) == "at converting"
        process.kill()
        process.wait()
    other = TinyGguf(weights=weights(seed=1)).write(tmp_path / "other.gguf")
    made = source.resolve(str(other), Stages())
    assert kept(home) == [made.path.name]


def test_two_processes_at_once_convert_once_and_both_end_well(home: Path, tiny: Path) -> None:
    with ExitStack() as both:
        first = both.enter_context(resolver(home, tiny, "converting"))
        assert line_of(first) == "at converting"
        second = both.enter_context(resolver(home, tiny, "waiting"))
        assert line_of(second) == "at waiting"
        let_go_on(second)
        let_go_on(first)
        digests = {line_of(first), line_of(second)}
        assert [first.wait(60), second.wait(60)] == [0, 0]
    assert len(digests) == 1
    assert len(kept(home)) == 1
