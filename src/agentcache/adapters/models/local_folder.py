"""Whether a folder holds a model that can be loaded, told from names, headers and sizes alone."""

import json
from pathlib import Path

from agentcache.adapters.models.safetensors_file import tensor_names
from agentcache.domain.errors import ModelError

# The weights that mlx-lm loads; any other *.safetensors file beside them is left alone by it.
WEIGHTS = "model*.safetensors"

_INDEX = "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tiktoken.model", "vocab.json")


def check_folder(ref: str, folder: Path) -> Path:
    """Return `folder` if config, whole weights and a tokenizer are there; else ModelError.

    Whether the model's type is supported is for the loader to say.
    """
    missing = _missing(folder)
    if missing:
        raise ModelError(ref, f"{folder} has no {' and no '.join(missing)}", _remedy(folder))
    try:
        _check_config(folder / "config.json")
        _check_weights(folder)
    except ValueError as broken:
        raise ModelError(ref, f"{folder}/{broken}", "Fetch or copy the model again") from None
    return folder


def _missing(folder: Path) -> list[str]:
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not any(folder.glob(WEIGHTS)):
        missing.append(WEIGHTS)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        missing.append("tokenizer.json (or tokenizer.model)")
    return missing


def _remedy(folder: Path) -> str:
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs:
        return f"Name the GGUF file itself: {ggufs[0]}"
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        return "Convert the weights to safetensors first: python -m mlx_lm convert --help"
    return "Name a folder with config.json, model*.safetensors and tokenizer.json"


def _check_config(path: Path) -> None:
    config = _read_json(path)
    if not isinstance(config.get("model_type"), str):
        raise ValueError("config.json states no model_type")


def _check_weights(folder: Path) -> None:
    found: set[str] = set()
    for path in sorted(folder.glob(WEIGHTS)):
        try:
            found |= tensor_names(path)
        except ValueError as broken:
            raise ValueError(f"{path.name} {broken}") from None
    if (folder / _INDEX).is_file():
        _check_index(folder, found)


def _check_index(folder: Path, found: set[str]) -> None:
    placed = _read_json(folder / _INDEX).get("weight_map")
    if not isinstance(placed, dict):
        raise ValueError(f"{_INDEX} has no weight_map")
    for name, file in placed.items():
        if not (folder / str(file)).is_file():
            raise ValueError(f"{file} is missing")
        if name not in found:
            raise ValueError(f"{file} lacks tensor {name}")


def _read_json(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        raise ValueError(f"{path.name} is not JSON") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return value
