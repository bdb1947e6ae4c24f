"""Tiny models of random weights, written as real MLX folders, loaded like any user's model.

The BLAS goes first: MLX binds its matmuls when it is imported.
"""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from agentcache.adapters.mlx import blas

blas.load()

import mlx.core as mx  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # noqa: E402

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END = CONTROL.index("<|im_end|>")
VOCABULARY = len(CONTROL) + 256
CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_llama(
    path: Path,
    seed: int,
    *,
    layers: int = 2,
    hidden: int = 64,
    intermediate: int = 128,
    heads: int = 4,
    kv_heads: int = 2,
    vocabulary: int = VOCABULARY,
    tied: bool = True,
    context: int = 4096,
    dtype: mx.Dtype = mx.float32,
    **more: object,
) -> Path:
    """A llama in the folder `path`. `more` goes into config.json, e.g. `rope_scaling`."""
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-5,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "tie_word_embeddings": tied,
        **more,
    }
    return tiny_model(path, seed, config, dtype)


def tiny_model(
    path: Path, seed: int, config: Mapping[str, object], dtype: mx.Dtype = mx.float32
) -> Path:
    """A model of mlx-lm's `config["model_type"]` in the folder `path`, which is made if missing.

    Its tokenizer is byte-level without merges: ids 0 to 2 are control tokens, 2 ends a turn.
    """
    config = {"eos_token_id": END, "vocab_size": VOCABULARY, **config}
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    weights = _weights(config, mx.random.key(seed), dtype)
    mx.save_safetensors(str(path / "model.safetensors"), weights, {"format": "mlx"})
    _write_tokenizer(path)
    return path


def _weights(config: Mapping[str, object], key: mx.array, dtype: mx.Dtype) -> dict[str, mx.array]:
    """Normal weights of deviation 1.5/√inputs: logits are of order one, and context matters."""
    module = import_module(f"mlx_lm.models.{config['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(config))
    weights = {}
    blanks: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    for name, blank in blanks.items():
        key, own = mx.random.split(key)
        noise = mx.random.normal(blank.shape, key=own)
        scaled = 1 + 0.1 * noise if blank.ndim == 1 else 1.5 * blank.shape[-1] ** -0.5 * noise
        weights[name] = scaled.astype(dtype)
    return weights


def _write_tokenizer(path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {text: n for n, text in enumerate([*CONTROL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in CONTROL])
    tokenizer.save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": CONTROL[1],
        "eos_token": CONTROL[END],
        "chat_template": CHATML,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config))
