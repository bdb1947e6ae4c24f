"""A folder is a model when config, whole weights and a tokenizer are in it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from agentcache.adapters.models.local_folder import check_folder
from agentcache.adapters.models.safetensors_file import (
    TensorPlan,
    tensor_names,
    write_safetensors,
)
from agentcache.domain.errors import ModelError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    for number in (1, 2):
        array = np.arange(6, dtype=np.float32).reshape(2, 3)
        save_file({f"t{number}": array}, tmp_path / f"model-{number}.safetensors")
    index = {"weight_map": {f"t{number}": f"model-{number}.safetensors" for number in (1, 2)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


BROKEN: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no config": ("no config.json", lambda f: (f / "config.json").unlink()),
    "config that is no JSON": ("not JSON", lambda f: (f / "config.json").write_text("{")),
    "config of nothing": ("model_type", lambda f: (f / "config.json").write_text("{}")),
    "config that is a list": ("not a JSON object", lambda f: (f / "config.json").write_text("[]")),
    "no tokenizer": ("no tokenizer.json", lambda f: (f / "tokenizer.json").unlink()),
    "no weights": (
        r"no model\*.safetensors",
        lambda f: [one.unlink() for one in f.glob("model-*")],
    ),
    "cut payload": ("23 bytes", lambda f: _cut(f / "model-2.safetensors", -1)),
    "cut header": ("cut off", lambda f: _cut(f / "model-2.safetensors", 20)),
    "empty file": ("cut off", lambda f: _cut(f / "model-2.safetensors", 0)),
    "hostile header": (
        "cut off",
        lambda f: (f / "model-2.safetensors").write_bytes(b"\xff" * 64),
    ),
    "a pointer instead of the file": (
        "cut off",
        lambda f: (f / "model-1.safetensors").write_text("version https://git-lfs.github.com"),
    ),
    "a shard missing": ("is missing", lambda f: (f / "model-1.safetensors").unlink()),
    "a tensor missing": (
        "lacks tensor t1",
        lambda f: save_file({"x": np.ones(1)}, f / "model-1.safetensors"),
    ),
}


def test_a_whole_folder_is_accepted(folder: Path) -> None:
    assert check_folder("mine", folder) == folder


def test_a_sentencepiece_tokenizer_is_accepted(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    assert check_folder("mine", folder) == folder


@pytest.mark.parametrize(("word", "breaks"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_folder_is_refused_with_what_is_missing(
    folder: Path, word: str, breaks: Callable[[Path], object]
) -> None:
    breaks(folder)
    with pytest.raises(ModelError, match=word) as refused:
        check_folder("mine", folder)
    assert refused.value.ref == "mine"
    assert refused.value.remedy


def test_a_folder_of_ggufs_points_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "some.gguf").touch()
    with pytest.raises(ModelError, match=r"some\.gguf"):
        check_folder("mine", tmp_path)


def test_written_safetensors_are_read_by_the_library_and_pass_the_check(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    arrays = {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.ones(5, np.float16)}
    path = tmp_path / "x.safetensors"
    plans = [TensorPlan(name, array.shape) for name, array in arrays.items()]
    write_safetensors(path, "float16", plans, arrays.values())
    found = load_file(path)
    assert tensor_names(path) == found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
