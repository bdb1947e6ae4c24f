"""Models of the Hugging Face hub: fetched once, used without a network, refused clearly."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentcache.adapters.models import LocalModelSource
from agentcache.adapters.models.gguf_llama import convert
from agentcache.adapters.models.hub import Hub
from agentcache.domain.errors import ModelError
from agentcache.ports.model_source import Stage
from tests.hub_stand_in import HubStandIn, hub_stand_in
from tests.tiny_gguf import TinyGguf

REF = "tiny-org/Tiny-Llama_1.0"
NOWHERE = "http://127.0.0.1:9"


def quiet(_done: int, _total: int | None, _stage: Stage, /) -> None:
    pass


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("tiny")
    gguf = TinyGguf().write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")
    convert("tiny", gguf, folder, "float32", quiet)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[HubStandIn]:
    partial = {name: body for name, body in files.items() if name != "model.safetensors"}
    models = {
        REF: files | {"README.md": b"hello", "pytorch_model.bin": b"not wanted"},
        "tiny-org/torch": partial | {"pytorch_model.bin": b"x"},
        "tiny-org/cut": files | {"model.safetensors": files["model.safetensors"][:-1]},
    }
    with hub_stand_in(models, gated=frozenset({"tiny-org/gated"})) as server:
        yield server


def source(tmp_path: Path, endpoint: str) -> LocalModelSource:
    return LocalModelSource(tmp_path / "home", hub=Hub(tmp_path / "cache", endpoint))


def test_a_model_is_fetched_and_loads(
    tmp_path: Path, hub: HubStandIn, files: dict[str, bytes]
) -> None:
    import mlx_lm

    folder = source(tmp_path, hub.url).resolve(REF, quiet)
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == files
    _, tokenizer = mlx_lm.load(str(folder.path))[:2]
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


def test_the_download_tells_how_far_it_is(
    tmp_path: Path, hub: HubStandIn, files: dict[str, bytes]
) -> None:
    seen: list[tuple[int, int | None]] = []

    def watch(done: int, total: int | None, stage: Stage, /) -> None:
        if stage == "downloading":
            seen.append((done, total))

    source(tmp_path, hub.url).resolve(REF, watch)
    size = sum(map(len, files.values()))
    assert seen[0] == (0, None)
    assert seen[-1] == (size, size)


def test_a_model_that_was_fetched_needs_no_network(tmp_path: Path, hub: HubStandIn) -> None:
    fetched = source(tmp_path, hub.url).resolve(REF, quiet)
    hub.requests.clear()
    assert source(tmp_path, hub.url).resolve(REF, quiet) == fetched
    assert hub.requests == []
    assert source(tmp_path, NOWHERE).resolve(REF, quiet) == fetched


def test_an_interrupted_download_is_taken_up_again(
    tmp_path: Path, hub: HubStandIn, files: dict[str, bytes]
) -> None:
    def cancel(done: int, _total: int | None, _stage: Stage, /) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        source(tmp_path, hub.url).resolve(REF, cancel)
    folder = source(tmp_path, hub.url).resolve(REF, quiet)
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == files


def test_a_snapshot_that_lost_a_file_is_completed(
    tmp_path: Path, hub: HubStandIn, files: dict[str, bytes]
) -> None:
    folder = source(tmp_path, hub.url).resolve(REF, quiet)
    (folder.path / "model.safetensors").unlink()
    again = source(tmp_path, hub.url).resolve(REF, quiet)
    assert (again.path / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert again.digest == folder.digest


@pytest.mark.parametrize(
    ("ref", "problem"),
    [
        ("tiny-org/nope", "neither a folder here nor a model on the hub"),
        ("tiny-org/gated", "gated"),
        ("tiny-org/torch", r"no model\*\.safetensors"),
        ("tiny-org/cut", "model.safetensors holds"),
        ("tiny-org/bad--id", "no valid id"),
    ],
)
def test_a_model_that_cannot_be_used_is_one_clear_error(
    tmp_path: Path, hub: HubStandIn, ref: str, problem: str
) -> None:
    with pytest.raises(ModelError, match=problem) as refused:
        source(tmp_path, hub.url).resolve(ref, quiet)
    assert refused.value.ref == ref
    assert refused.value.remedy


def test_without_a_network_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="hub cannot be reached"):
        source(tmp_path, NOWHERE).resolve(REF, quiet)


def test_a_fetched_model_is_listed_and_removed(
    tmp_path: Path, hub: HubStandIn, files: dict[str, bytes]
) -> None:
    models = source(tmp_path, hub.url)
    path = models.resolve(REF, quiet).path
    (record,) = models.list()
    assert (record.ref, record.path) == (REF, path)
    assert record.nbytes == sum(map(len, files.values()))
    assert models.remove(REF) == record.nbytes
    assert models.list() == ()
    with pytest.raises(ModelError, match="not kept"):
        models.remove(REF)


def test_the_clients_own_settings_are_used(
    tmp_path: Path, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    script = Path(__file__).with_name("resolver.py")
    command = [sys.executable, str(script), str(tmp_path / "home"), REF, "nowhere"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == source(tmp_path, hub.url).resolve(REF, quiet).digest.hex()
    assert list((tmp_path / "hf" / "hub").glob("models--tiny-org--*"))
    assert shown.stderr == ""
