"""Tiny models of random weights, written as real MLX folders, loaded like any user's model.

The BLAS goes first: MLX binds its matmuls when it is imported.
"""

import json
from pathlib import Path

from agentcache.adapters.mlx import blas

blas.load()

import mlx.core as mx  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402
from mlx_lm.models import llama  # noqa: E402
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # noqa: E402

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
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
    """A llama of random weights in the folder `path` (made if missing), with a ChatML tokenizer.

    The tokenizer is byte-level without merges: ids 0 to 2 are control tokens, 2 ends a turn. `more`
    goes into config.json as it is, e.g. `rope_scaling`.
    """
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
        "eos_token_id": CONTROL.index("<|im_end|>"),
        **more,
    }
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    write_weights(path, llama.Model(llama.ModelArgs.from_dict(config)), seed, dtype)
    write_tokenizer(path)
    return path


def write_weights(path: Path, model: llama.Model, seed: int, dtype: mx.Dtype) -> None:
    """Normal weights of deviation 1.5/√inputs: logits are of order one, and context matters."""
    key = mx.random.key(seed)
    weights = {}
    for name, old in tree_flatten(model.parameters()):
        key, mine = mx.random.split(key)
        scale = 1.5 * old.shape[-1] ** -0.5
        noise = mx.random.normal(old.shape, key=mine)
        weights[name] = (1 + 0.1 * noise if old.ndim == 1 else scale * noise).astype(dtype)
    mx.save_safetensors(str(path / "model.safetensors"), weights, {"format": "mlx"})


def write_tokenizer(path: Path) -> None:
    """tokenizer.json and tokenizer_config.json: bytes, three control tokens, a ChatML template."""
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
        "eos_token": CONTROL[2],
        "chat_template": CHATML,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config))
