"""Tiny Llama models with random weights, written to GGUF the way llama.cpp's converter does."""

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from attrs import Factory, define
from gguf import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray
from tokenizers.pre_tokenizers import ByteLevel

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, LAYERS, CONTEXT = 32, 48, 4, 2, 8, 2, 128
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "1 2", "Ġ 1", "Ċ Ċ", "Ġ Ġ"]
TOKENS = [*SPECIALS, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Value = str | bool | int | float | list[str] | list[int] | list[float]
Array = NDArray[np.float32]


def metadata() -> dict[str, Value]:
    """The metadata of the tiny model, by GGUF key."""
    return {
        "llama.block_count": LAYERS,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": HEAD_DIM,
        "llama.rope.freq_base": 10_000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3] * len(SPECIALS) + [1] * (len(TOKENS) - len(SPECIALS)),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }


def weights(seed: int = 0, *, tied: bool = True, bias: bool = False) -> dict[str, Array]:
    """Random weights by GGUF name, rows in the order of the published checkpoint."""
    q, kv, vocab = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, len(TOKENS)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, HIDDEN)}
    for layer in range(LAYERS):
        block: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (HIDDEN,),
            "attn_q.weight": (q, HIDDEN),
            "attn_k.weight": (kv, HIDDEN),
            "attn_v.weight": (kv, HIDDEN),
            "attn_output.weight": (HIDDEN, q),
            "ffn_norm.weight": (HIDDEN,),
            "ffn_gate.weight": (INNER, HIDDEN),
            "ffn_up.weight": (INNER, HIDDEN),
            "ffn_down.weight": (HIDDEN, INNER),
        }
        if bias:
            block |= {"attn_q.bias": (q,), "attn_k.bias": (kv,)}
            block |= {"attn_v.bias": (kv,), "attn_output.bias": (HIDDEN,)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    shapes["output_norm.weight"] = (HIDDEN,)
    if not tied:
        shapes["output.weight"] = (vocab, HIDDEN)
    random = np.random.default_rng(seed)
    return {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


@define
class TinyGguf:
    """What goes into a GGUF; change it, then `write` it."""

    metadata: dict[str, Value] = Factory(metadata)
    weights: dict[str, Array] = Factory(weights)
    encodings: dict[str, GGMLQuantizationType] = Factory(dict)
    architecture: str = "llama"

    def write(self, path: Path) -> Path:
        """Write the file, with q and k permuted."""
        writer = gguf.GGUFWriter(path, self.architecture)
        for key, value in self.metadata.items():
            _add(writer, key, value)
        for name, array in interleaved(self.weights).items():
            encoding = self.encodings.get(name, GGMLQuantizationType.F32)
            writer.add_tensor(name, gguf.quantize(array, encoding), raw_dtype=encoding)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def _add(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    match value:
        case list():
            writer.add_array(key, value)
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_key_value(key, value, GGUFValueType.STRING)


def interleaved(weights: Mapping[str, Array]) -> dict[str, Array]:
    """`weights` with the rows of q and k in llama.cpp's order: 0, d/2, 1, d/2 + 1, ..."""
    heads = {"attn_q": HEADS, "attn_k": KV_HEADS}
    return {
        name: _interleave(array, heads[part]) if (part := name.split(".")[-2]) in heads else array
        for name, array in weights.items()
    }


def _interleave(array: Array, heads: int) -> Array:
    order = np.arange(HEAD_DIM).reshape(2, -1).T.ravel()
    rows = np.concatenate([head * HEAD_DIM + order for head in range(heads)])
    return np.ascontiguousarray(array[rows])
