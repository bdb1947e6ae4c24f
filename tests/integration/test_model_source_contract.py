"""What every model source promises."""

from pathlib import Path

import pytest

from agentcache.adapters.memory.model_source import MemoryModelSource
from agentcache.adapters.models import LocalModelSource
from agentcache.adapters.models.hub import Hub
from agentcache.domain.errors import ModelError
from agentcache.ports.model_source import ModelFolder, ModelSource, Stage
from tests.tiny_gguf import TinyGguf, weights


def memory(tmp_path: Path) -> ModelSource:
    """Two models, ready."""
    return MemoryModelSource(
        ModelFolder(name, tmp_path / name, name.encode().ljust(32)) for name in ("one", "two")
    )


def local(tmp_path: Path) -> ModelSource:
    """Two models, converted."""
    source = LocalModelSource(tmp_path / "home", hub=Hub(tmp_path / "hub", "http://127.0.0.1:9"))
    for seed, name in enumerate(("one", "two")):
        gguf = TinyGguf(weights=weights(seed)).write(tmp_path / f"{name}.gguf")
        source.resolve(str(gguf), quiet)
    return source


def quiet(_done: int, _total: int | None, _stage: Stage, /) -> None:
    pass


@pytest.fixture(params=[memory, local])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> ModelSource:
    made: ModelSource = request.param(tmp_path)
    return made


def test_what_is_listed_resolves_to_the_listed_folder(source: ModelSource) -> None:
    records = source.list()
    assert len(records) == 2
    assert [source.resolve(one.ref, quiet).path for one in records] == [one.path for one in records]


def test_a_model_resolves_to_the_same_folder_each_time(source: ModelSource) -> None:
    ref = source.list()[0].ref
    first = source.resolve(ref, quiet)
    assert source.resolve(ref, quiet) == first
    assert first.ref == ref
    assert len(first.digest) == 32


def test_other_models_have_other_digests(source: ModelSource) -> None:
    one, two = (source.resolve(record.ref, quiet) for record in source.list())
    assert one.digest != two.digest


def test_a_removed_model_is_gone_and_the_other_stays(source: ModelSource) -> None:
    gone, stays = source.list()
    assert source.remove(gone.ref) == gone.nbytes
    assert source.list() == (stays,)
    with pytest.raises(ModelError):
        source.resolve(gone.ref, quiet)
    with pytest.raises(ModelError):
        source.remove(gone.ref)


def test_an_unknown_model_is_an_error_with_a_remedy(source: ModelSource) -> None:
    for ask in (lambda: source.resolve("nope", quiet), lambda: source.remove("nope")):
        with pytest.raises(ModelError) as refused:
            ask()
        assert refused.value.ref == "nope"
        assert refused.value.remedy
