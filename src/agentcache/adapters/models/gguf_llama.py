"""Turns a GGUF of Llama architecture into a folder that mlx-lm loads: config, weights, tokenizer.

llama.cpp keeps the two halves of each head's q and k rows interleaved, for the way it rotates;
MLX rotates halves, so the rows are put back in the order of the published checkpoint.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from agentcache.adapters.models.gguf_file import BadGguf, GgufFile
from agentcache.adapters.models.gguf_tokenizer import GgufTokenizer
from agentcache.adapters.models.llama_shape import LlamaShape
from agentcache.adapters.models.safetensors_file import FloatArray, TensorPlan, write_safetensors
from agentcache.domain.errors import ModelError
from agentcache.ports.model_source import Progress

Dtype = Literal["float32", "float16"]

# Raised when the conversion gives other files for the same GGUF, so that old folders are remade.
CONVERTER = 1


def default_dtype() -> Dtype:
    """The dtype to convert to: on MLX's CPU backend matmuls in half are 100 times slower."""
    return "float16" if sys.platform == "darwin" else "float32"


def convert(ref: str, source: Path, folder: Path, dtype: Dtype, progress: Progress) -> None:
    """Write config.json, model.safetensors and the tokenizer's files of `source` into `folder`.

    Holds one dequantised tensor in memory at a time. Raises ModelError, naming `ref`, for a file
    that is not a whole GGUF of Llama architecture; `folder` is then the caller's to delete.
    """
    try:
        _convert(GgufFile.read(source), folder, dtype, progress)
    except BadGguf as bad:
        remedy = "Use another GGUF of Llama architecture, an MLX folder or a Hugging Face id"
        raise ModelError(ref, f"{source.name} cannot be used: {bad}", remedy) from bad


def _convert(gguf: GgufFile, folder: Path, dtype: Dtype, progress: Progress) -> None:
    shape = LlamaShape.of(gguf)
    tokenizer = GgufTokenizer.of(gguf.metadata)
    tensors = _expected(shape, gguf)
    _check_tensors(gguf, tensors)
    config = shape.config(
        dtype=dtype, tied="output.weight" not in tensors, bias=_BIAS_MARK in tensors
    )
    _write_json(folder / "config.json", config | tokenizer.config_ids)
    tokenizer.write(folder, shape.context)
    write_safetensors(
        folder / "model.safetensors",
        dtype,
        [TensorPlan(tensor.name, tensor.shape) for tensor in tensors.values()],
        _arrays(gguf, tensors, dtype, progress),
    )


@frozen
class _Tensor:
    """A tensor to be: its name and shape; `heads` is set where rows of heads were interleaved."""

    name: str
    shape: tuple[int, ...]
    heads: int | None = None


_BIAS_MARK = "blk.0.attn_q.bias"


def _expected(shape: LlamaShape, gguf: GgufFile) -> Mapping[str, _Tensor]:
    """Every tensor that a Llama of this shape has, by its name in the GGUF."""
    embedding = (shape.vocab, shape.hidden)
    tensors = {
        "token_embd.weight": _Tensor("model.embed_tokens.weight", embedding),
        "output_norm.weight": _Tensor("model.norm.weight", (shape.hidden,)),
    }
    if "output.weight" in gguf.tensors:
        tensors["output.weight"] = _Tensor("lm_head.weight", embedding)
    if shape.layers > len(gguf.tensors):
        raise BadGguf(f"it claims {shape.layers} layers and has {len(gguf.tensors)} tensors")
    block = _block(shape, bias=_BIAS_MARK in gguf.tensors)
    for layer in range(shape.layers):
        for name, one in block.items():
            renamed = f"model.layers.{layer}.{one.name}"
            tensors[f"blk.{layer}.{name}"] = _Tensor(renamed, one.shape, one.heads)
    return tensors


def _block(shape: LlamaShape, *, bias: bool) -> Mapping[str, _Tensor]:
    hidden, inner = shape.hidden, shape.intermediate
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    block = {
        "attn_norm.weight": _Tensor("input_layernorm.weight", (hidden,)),
        "attn_q.weight": _Tensor("self_attn.q_proj.weight", (q, hidden), shape.heads),
        "attn_k.weight": _Tensor("self_attn.k_proj.weight", (kv, hidden), shape.kv_heads),
        "attn_v.weight": _Tensor("self_attn.v_proj.weight", (kv, hidden)),
        "attn_output.weight": _Tensor("self_attn.o_proj.weight", (hidden, q)),
        "ffn_norm.weight": _Tensor("post_attention_layernorm.weight", (hidden,)),
        "ffn_gate.weight": _Tensor("mlp.gate_proj.weight", (inner, hidden)),
        "ffn_up.weight": _Tensor("mlp.up_proj.weight", (inner, hidden)),
        "ffn_down.weight": _Tensor("mlp.down_proj.weight", (hidden, inner)),
    }
    if bias:
        block |= {
            "attn_q.bias": _Tensor("self_attn.q_proj.bias", (q,), shape.heads),
            "attn_k.bias": _Tensor("self_attn.k_proj.bias", (kv,), shape.kv_heads),
            "attn_v.bias": _Tensor("self_attn.v_proj.bias", (kv,)),
            "attn_output.bias": _Tensor("self_attn.o_proj.bias", (hidden,)),
        }
    return block


def _check_tensors(gguf: GgufFile, tensors: Mapping[str, _Tensor]) -> None:
    missing = [name for name in tensors if name not in gguf.tensors]
    if missing:
        raise BadGguf(f"it lacks {len(missing)} tensors, such as {missing[0]!r}")
    # Weights that are left out would change every answer, silently.
    others = gguf.tensors.keys() - tensors.keys() - {"rope_freqs.weight"}
    if others:
        raise BadGguf(f"it has tensors that no Llama has, such as {min(others)[:60]!r}")
    for name, tensor in tensors.items():
        found = gguf.tensors[name].shape
        if found != tensor.shape:
            raise BadGguf(f"tensor {name!r} has shape {found} where {tensor.shape} is due")


def _arrays(
    gguf: GgufFile, tensors: Mapping[str, _Tensor], dtype: Dtype, progress: Progress
) -> Iterator[FloatArray]:
    total = sum(gguf.tensors[name].nbytes for name in tensors)
    done = 0
    progress(done, total, "converting")
    for name, tensor in tensors.items():
        yield _cast(name, _halves(gguf.load(gguf.tensors[name]), tensor.heads), dtype)
        done += gguf.tensors[name].nbytes
        progress(done, total, "converting")


def _halves(array: NDArray[np.float32], heads: int | None) -> NDArray[np.float32]:
    """Rows of each head from pairs (0, d/2, 1, d/2+1, ...) back to halves (0, 1, ..., d-1)."""
    if heads is None:
        return array
    pairs = array.reshape(heads, -1, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


def _cast(name: str, array: NDArray[np.float32], dtype: Dtype) -> FloatArray:
    with np.errstate(over="ignore"):
        cast = array.astype(np.float16) if dtype == "float16" else array
    if not np.isfinite(cast).all():
        raise BadGguf(f"tensor {name!r} has values that are not finite in {dtype}")
    return cast


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
