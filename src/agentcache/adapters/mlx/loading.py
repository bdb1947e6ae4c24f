"""Loads an MLX folder: weights in the dtype they are run in, context length, end tokens."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from attrs import frozen
from mlx_lm.utils import dequantize_model, load_model

from agentcache.adapters.mlx.spec import LanguageModel
from agentcache.domain.errors import ModelError

# Where models state how long a sequence may be; the first one counts.
_CONTEXT_KEYS = ("max_position_embeddings", "max_seq_len", "n_positions", "n_ctx", "seq_length")
# For the few that state nothing.
_DEFAULT_CONTEXT = 4096

_Json = Mapping[str, Any]


@frozen(eq=False)
class LoadedModel:
    """A model and what its folder says: `context` in tokens, `ends` are the ids that end a turn."""

    model: LanguageModel
    context: int
    ends: frozenset[int]


def load_folder(folder: Path, name: str) -> LoadedModel:
    """Load the MLX folder `folder` strictly. Raises ModelError when it cannot be used.

    On a CPU everything is run in float32: half and bfloat16 weights are converted, quantised ones
    dequantised, because MLX's CPU matmuls of those are some hundred times slower. Elsewhere weights
    stay as they are.
    """
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    try:
        model, config = load_model(folder, lazy=True)
        if on_cpu:
            model = dequantize_model(model)
            model.set_dtype(mx.float32)
        mx.eval(model.parameters())
    except FileNotFoundError as error:
        raise ModelError(name, f"{folder} is not an MLX folder: {error}", _CONVERT) from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ModelError(name, f"it cannot be loaded: {error}", _CHECK) from error
    return LoadedModel(model, _context(config), frozenset(_ends(folder, config)))


_CONVERT = "Give a folder with config.json and model*.safetensors, e.g. made by mlx_lm.convert"
_CHECK = "Check that the folder is complete and that this mlx-lm knows the architecture"


def _context(config: _Json) -> int:
    for source in (config, config.get("text_config") or {}):
        for key in _CONTEXT_KEYS:
            if isinstance(source.get(key), int):
                return int(source[key])
    return _DEFAULT_CONTEXT


def _ends(folder: Path, config: _Json) -> Iterator[int]:
    """Ids that config.json or generation_config.json name, and the tokenizer's own end token."""
    for source in (config, _read(folder / "generation_config.json")):
        named = source.get("eos_token_id")
        yield from named if isinstance(named, list) else [named] if isinstance(named, int) else []
    tokenizer_config = _read(folder / "tokenizer_config.json")
    end = tokenizer_config.get("eos_token")
    text = end.get("content") if isinstance(end, dict) else end
    for token, content in _added_tokens(folder, tokenizer_config):
        if content == text:
            yield token


def _added_tokens(folder: Path, tokenizer_config: _Json) -> Iterable[tuple[int, str]]:
    for token, entry in (tokenizer_config.get("added_tokens_decoder") or {}).items():
        yield int(token), entry["content"]
    for entry in _read(folder / "tokenizer.json").get("added_tokens") or ():
        yield entry["id"], entry["content"]


def _read(path: Path) -> _Json:
    """A JSON object, empty where there is none that can be read."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
