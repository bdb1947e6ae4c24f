"""The model digest: differs with anything that changes KV values, and is cheap the second time."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agentcache.adapters.models.digest import DigestMemo, model_digest
from agentcache.ports.model_source import Stage


class Hashed:
    """A Progress that keeps what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int | None, Stage]] = []

    def __call__(self, done: int, total: int | None, stage: Stage, /) -> None:
        self.calls.append((done, total, stage))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "tokenizer.json").write_text("{}")
    # So old that a change gets another time, however fast the test is.
    for path in model.iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))
    return model


@pytest.fixture
def memo(tmp_path: Path) -> DigestMemo:
    return DigestMemo(tmp_path / "digests.json", settled_ns=0)


CHANGES: dict[str, Callable[[Path], object]] = {
    "weights": lambda f: (f / "model.safetensors").write_bytes(b"Weights"),
    "another shard": lambda f: (f / "model-2.safetensors").write_bytes(b"more"),
    "a shard's name": lambda f: (f / "model.safetensors").rename(f / "model-1.safetensors"),
    "config": lambda f: (f / "config.json").write_text('{"model_type": "llama", "hidden_size": 9}'),
    "quantisation": lambda f: (f / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 8, "quantization": {"bits": 4}}'
    ),
    "tokenizer": lambda f: (f / "tokenizer.json").write_text("[]"),
    "template": lambda f: (f / "chat_template.jinja").write_text("x"),
    "adapters": lambda f: (f / "adapters.safetensors").write_bytes(b"lora"),
    "adapters' config": lambda f: (f / "adapter_config.json").write_text("{}"),
    "model code": lambda f: (f / "model.py").write_text("pass"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_what_makes_kv_values_changes_the_digest(
    folder: Path, memo: DigestMemo, change: Callable[[Path], object]
) -> None:
    before = model_digest(folder, memo)
    change(folder)
    assert model_digest(folder, memo) != before


def test_order_space_and_provenance_of_the_config_do_not_count(
    folder: Path, memo: DigestMemo
) -> None:
    before = model_digest(folder, memo)
    config = {"hidden_size": 8, "transformers_version": "9", "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    (folder / "README.md").write_text("hello")
    assert model_digest(folder, memo) == before


def test_the_same_model_in_another_place_has_the_same_digest(
    folder: Path, memo: DigestMemo
) -> None:
    before = model_digest(folder, memo)
    assert model_digest(folder.rename(folder.parent / "elsewhere"), memo) == before


def test_a_file_that_did_not_change_is_not_hashed_again(folder: Path, tmp_path: Path) -> None:
    first, second = Hashed(), Hashed()
    path = tmp_path / "digests.json"
    digest = model_digest(folder, DigestMemo(path, settled_ns=0), first)
    assert model_digest(folder, DigestMemo(path, settled_ns=0), second) == digest
    assert first.calls[-1] == (9, 9, "checking")
    assert second.calls == []


def test_a_file_changed_within_the_clock_tick_is_hashed_again(folder: Path, tmp_path: Path) -> None:
    memo, again = DigestMemo(tmp_path / "digests.json", settled_ns=10**15), Hashed()
    model_digest(folder, memo)
    model_digest(folder, memo, again)
    assert len(again.calls) == 2


def test_a_file_with_its_old_size_and_time_but_other_content_is_found(
    folder: Path, memo: DigestMemo
) -> None:
    weights = folder / "model.safetensors"
    before, stat = model_digest(folder, memo), weights.stat()
    with weights.open("r+b") as file:
        file.write(b"WEIGHTS")
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    while weights.stat().st_ctime_ns == stat.st_ctime_ns:  # the clock's tick
        weights.chmod(0o600)
    assert weights.stat().st_mtime_ns == stat.st_mtime_ns
    assert model_digest(folder, memo) != before


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"x": 1}', b"\xff"])
def test_a_damaged_memo_costs_time_only(folder: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "digests.json"
    digest = model_digest(folder, DigestMemo(path, settled_ns=0))
    path.write_bytes(content)
    assert model_digest(folder, DigestMemo(path, settled_ns=0)) == digest


def test_files_that_are_gone_are_forgotten(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "digests.json"
    model_digest(folder, DigestMemo(path, settled_ns=0))
    moved = folder.rename(folder.parent / "elsewhere")
    model_digest(moved, DigestMemo(path, settled_ns=0))
    assert {Path(one).parent for one in json.loads(path.read_bytes())} == {moved}
    assert path.stat().st_mode & 0o777 == 0o600
