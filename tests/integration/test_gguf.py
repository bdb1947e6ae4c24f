"""GGUF files become folders that mlx-lm loads, with the weights and the arithmetic of the GGUF."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from attrs import define
from gguf import GGMLQuantizationType, dequantize, quantize
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file

from agentcache.adapters.models.gguf_llama import Dtype, convert
from agentcache.adapters.models.local_folder import check_folder
from agentcache.domain.errors import ModelError
from agentcache.ports.model_source import Stage
from tests import tiny_gguf
from tests.tiny_gguf import TinyGguf, weights

HF_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def quiet(_done: int, _total: int | None, _stage: Stage) -> None:
    pass


def converted(source: Path, dtype: Dtype = "float32") -> Path:
    folder = source.with_suffix("")
    folder.mkdir()
    convert("tiny", source, folder, dtype, quiet)
    return folder


def config(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    return value


def hf_name(name: str) -> str:
    whole = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    if name in whole:
        return whole[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{HF_NAMES[part]}.{kind}"


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_every_tensor_comes_back_as_it_was_before_llama_cpp_permuted_it(
    tmp_path: Path, tied: bool, bias: bool
) -> None:
    published = weights(tied=tied, bias=bias)
    folder = converted(TinyGguf(weights=published).write(tmp_path / "tiny.gguf"))
    found = load_file(folder / "model.safetensors")
    assert found.keys() == {hf_name(name) for name in published}
    for name, array in published.items():
        np.testing.assert_array_equal(found[hf_name(name)], array, err_msg=name)
    assert config(folder)["tie_word_embeddings"] is tied
    assert config(folder)["attention_bias"] is bias


@pytest.mark.parametrize(
    "encoding",
    [
        GGMLQuantizationType.F16,
        GGMLQuantizationType.BF16,
        GGMLQuantizationType.Q8_0,
        GGMLQuantizationType.Q4_1,
    ],
)
def test_quantised_tensors_come_back_with_the_values_that_their_encoding_holds(
    tmp_path: Path, encoding: GGMLQuantizationType
) -> None:
    tiny = TinyGguf(encodings={"token_embd.weight": encoding, "blk.0.attn_v.weight": encoding})
    found = load_file(converted(tiny.write(tmp_path / "tiny.gguf")) / "model.safetensors")
    for name in tiny.encodings:
        held = dequantize(quantize(tiny.weights[name], encoding), encoding)
        np.testing.assert_array_equal(found[hf_name(name)], held)


def test_float16_halves_the_weights(tmp_path: Path) -> None:
    tiny = TinyGguf()
    found = load_file(converted(tiny.write(tmp_path / "t.gguf"), "float16") / "model.safetensors")
    for name, array in tiny.weights.items():
        np.testing.assert_array_equal(found[hf_name(name)], array.astype(np.float16))


@pytest.mark.parametrize("tied", [False, True])
def test_mlx_lm_computes_what_llama_cpp_defines(tmp_path: Path, tied: bool) -> None:
    import mlx.core as mx
    import mlx_lm

    tiny = TinyGguf(weights=weights(seed=3, tied=tied))
    model, tokenizer = mlx_lm.load(str(converted(tiny.write(tmp_path / "tiny.gguf"))))[:2]
    ids = tokenizer.encode("hello world 12\n\n")
    logits = np.array(model(mx.array([ids]))[0])
    np.testing.assert_allclose(logits, _llama_cpp_logits(tiny, ids), rtol=2e-4, atol=2e-4)


def _llama_cpp_logits(tiny: TinyGguf, ids: list[int]) -> NDArray[np.float64]:
    """A Llama over the GGUF's own rows: rotates neighbours, as llama.cpp does (rope type NORM)."""
    w = {name: a.astype(np.float64) for name, a in tiny_gguf.interleaved(tiny.weights).items()}
    x = w["token_embd.weight"][ids]
    for layer in range(tiny_gguf.LAYERS):
        b = {n.removeprefix(f"blk.{layer}."): a for n, a in w.items() if f"blk.{layer}." in n}
        h = _rms(x) * b["attn_norm.weight"]
        q = _rotate(_heads(h @ b["attn_q.weight"].T))
        k = _rotate(_heads(h @ b["attn_k.weight"].T)).repeat(2, axis=0)
        v = _heads(h @ b["attn_v.weight"].T).repeat(2, axis=0)
        scores = q @ k.swapaxes(1, 2) / np.sqrt(tiny_gguf.HEAD_DIM)
        scores += np.triu(np.full(scores.shape[1:], -np.inf), 1)
        share = np.exp(scores - scores.max(-1, keepdims=True))
        seen = share / share.sum(-1, keepdims=True) @ v
        x = x + seen.swapaxes(0, 1).reshape(len(ids), -1) @ b["attn_output.weight"].T
        h = _rms(x) * b["ffn_norm.weight"]
        gate = h @ b["ffn_gate.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ b["ffn_up.weight"].T)) @ b["ffn_down.weight"].T
    return _rms(x) * w["output_norm.weight"] @ w.get("output.weight", w["token_embd.weight"]).T


def _rms(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def _heads(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x.reshape(len(x), -1, tiny_gguf.HEAD_DIM).swapaxes(0, 1)


def _rotate(x: NDArray[np.float64]) -> NDArray[np.float64]:
    dim = tiny_gguf.HEAD_DIM
    angle = np.arange(x.shape[1])[:, None] * 10_000.0 ** (-np.arange(0, dim, 2) / dim)
    even, odd, cos, sin = x[..., 0::2], x[..., 1::2], np.cos(angle), np.sin(angle)
    return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)


def test_the_chat_template_and_the_end_of_turn_come_along(tmp_path: Path) -> None:
    import mlx_lm

    tiny = TinyGguf()
    tiny.metadata["tokenizer.ggml.eot_token_id"] = 0
    _, tokenizer = mlx_lm.load(str(converted(tiny.write(tmp_path / "tiny.gguf"))))[:2]
    messages = [{"role": "user", "content": "hello"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert tokenizer.decode(ids) == ("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")
    assert ids[0] == 1
    assert set(tokenizer.eos_token_ids) == {0, 2}


def test_the_rope_of_the_metadata_reaches_the_config(tmp_path: Path) -> None:
    tiny = TinyGguf()
    tiny.metadata |= {
        "llama.rope.freq_base": 500_000.0,
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 32,
    }
    found = config(converted(tiny.write(tmp_path / "tiny.gguf")))
    assert found["rope_theta"] == 500_000.0
    assert found["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    }


def test_the_rope_of_llama_3_is_found_again_from_its_factors(tmp_path: Path) -> None:
    tiny = TinyGguf()
    tiny.metadata["llama.rope.freq_base"] = 500_000.0
    # head dim 8: wavelengths 6.3, 167, 4443 (between the two bounds) and 118,143 tokens
    smooth = (8192 / (2 * np.pi * 500_000**0.5) - 1) / 3
    between = 1 / ((1 - smooth) / 8 + smooth)
    factors = np.array([1, 1, between, 8], np.float32)
    tiny.weights["rope_freqs.weight"] = factors
    scaling = config(converted(tiny.write(tmp_path / "tiny.gguf")))["rope_scaling"]
    assert scaling["rope_type"] == "llama3"
    assert scaling["factor"] == 8.0
    tiny.weights["rope_freqs.weight"] = factors[::-1].copy()
    with pytest.raises(ModelError, match="rope scaling"):
        converted(tiny.write(tmp_path / "odd.gguf"))


def test_a_head_dim_of_its_own_is_kept(tmp_path: Path) -> None:
    tiny = TinyGguf()
    tiny.metadata |= {"llama.attention.head_count": 2, "llama.attention.head_count_kv": 1}
    tiny.metadata |= {"llama.attention.key_length": 16, "llama.attention.value_length": 16}
    tiny.metadata["llama.rope.dimension_count"] = 16
    assert config(converted(tiny.write(tmp_path / "tiny.gguf")))["head_dim"] == 16


@define
class Bad:
    """A way to spoil the tiny GGUF, and a word of the error it must cause."""

    word: str
    change: Callable[[TinyGguf], object]


BAD = {
    "another architecture": Bad("'mamba'", lambda t: setattr(t, "architecture", "mamba")),
    "no layers stated": Bad("block_count", lambda t: t.metadata.pop("llama.block_count")),
    "a text for a number": Bad(
        "head_count", lambda t: t.metadata.update({"llama.attention.head_count": "four"})
    ),
    "a number per layer": Bad(
        "list of 2", lambda t: t.metadata.update({"llama.feed_forward_length": [48, 48]})
    ),
    "hostile number of layers": Bad(
        "layers", lambda t: t.metadata.update({"llama.block_count": 4_000_000_000})
    ),
    "heads that do not share": Bad(
        "KV heads", lambda t: t.metadata.update({"llama.attention.head_count_kv": 3})
    ),
    "partial rotation": Bad(
        "rope.dimension_count", lambda t: t.metadata.update({"llama.rope.dimension_count": 4})
    ),
    "experts": Bad("experts", lambda t: t.metadata.update({"llama.expert_count": 8})),
    "unknown scaling": Bad(
        "longrope", lambda t: t.metadata.update({"llama.rope.scaling.type": "longrope"})
    ),
    "a split file": Bad("merge", lambda t: t.metadata.update({"split.count": 3})),
    "a tensor missing": Bad("attn_k", lambda t: t.weights.pop("blk.1.attn_k.weight")),
    "a tensor too many": Bad(
        "attn_q_norm",
        lambda t: t.weights.update({"blk.0.attn_q_norm.weight": np.ones(8, np.float32)}),
    ),
    "a wrong shape": Bad(
        "shape", lambda t: t.weights.update({"output_norm.weight": np.ones(8, np.float32)})
    ),
    "not finite": Bad(
        "finite",
        lambda t: t.weights.update({"output_norm.weight": np.full(32, np.inf, np.float32)}),
    ),
    "an unknown tokenizer": Bad(
        "'bert'", lambda t: t.metadata.update({"tokenizer.ggml.model": "bert"})
    ),
    "an unknown pre-tokenizer": Bad(
        "'jais'", lambda t: t.metadata.update({"tokenizer.ggml.pre": "jais"})
    ),
    "a token twice": Bad(
        "duplicates",
        lambda t: t.metadata.update({"tokenizer.ggml.tokens": ["x"] * len(tiny_gguf.TOKENS)}),
    ),
    "a merge of nothing": Bad(
        "merges", lambda t: t.metadata.update({"tokenizer.ggml.merges": ["nope nope"]})
    ),
    "an end outside the vocabulary": Bad(
        "outside", lambda t: t.metadata.update({"tokenizer.ggml.eos_token_id": 10_000})
    ),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_what_is_no_whole_llama_is_refused_with_the_reason(tmp_path: Path, bad: Bad) -> None:
    tiny = TinyGguf()
    bad.change(tiny)
    with pytest.raises(ModelError, match=bad.word) as refused:
        converted(tiny.write(tmp_path / "bad.gguf"))
    assert refused.value.ref == "tiny"
    assert refused.value.remedy


def test_a_float16_that_overflows_is_refused(tmp_path: Path) -> None:
    tiny = TinyGguf()
    tiny.weights["output_norm.weight"] *= 1e6
    with pytest.raises(ModelError, match="not finite in float16"):
        converted(tiny.write(tmp_path / "tiny.gguf"), "float16")


U64_MAX = struct.pack("<Q", 2**64 - 1)


@pytest.mark.parametrize(
    ("word", "change"),
    [
        ("no GGUF", lambda raw: b"ELF!" + raw[4:]),
        ("no GGUF", lambda raw: b""),
        ("version 1", lambda raw: raw[:4] + struct.pack("<I", 1) + raw[8:]),
        ("cut off", lambda raw: raw[:8] + U64_MAX + raw[16:]),
        ("cut off", lambda raw: raw[:16] + U64_MAX + raw[24:]),
        ("cut off", lambda raw: raw[:24] + U64_MAX + raw[32:]),
        ("cut off", lambda raw: raw[: len(raw) // 2]),
        ("cut off", lambda raw: raw[:-200]),
        ("twice", lambda raw: raw.replace(b"blk.1.attn_q", b"blk.1.attn_k")),
        ("twice", lambda raw: raw.replace(b"ggml.bos_token_id", b"ggml.eos_token_id")),
        ("UTF-8", lambda raw: raw.replace(b"assistant", b"\xff" * 9)),
        ("cut off", lambda raw: _with_array_of(raw, b"tokenizer.ggml.token_type", 2**60)),
        ("cut off", lambda raw: _with_array_of(raw, b"tokenizer.ggml.tokens", 2**60)),
        ("where another one does", lambda raw: _with_norm_at(raw, 0)),
        ("not aligned", lambda raw: _with_norm_at(raw, 2**20 + 1)),
    ],
)
def test_a_damaged_file_is_refused(
    tmp_path: Path, word: str, change: Callable[[bytes], bytes]
) -> None:
    source = TinyGguf().write(tmp_path / "tiny.gguf")
    source.write_bytes(change(source.read_bytes()))
    with pytest.raises(ModelError, match=word):
        converted(source)


def _with_array_of(raw: bytes, key: bytes, count: int) -> bytes:
    """`raw`, where the array `key` claims `count` items (behind the key and two type codes)."""
    at = raw.index(key) + len(key) + 8
    return raw[:at] + struct.pack("<Q", count) + raw[at + 8 :]


def _with_norm_at(raw: bytes, offset: int) -> bytes:
    """`raw`, whose last norm claims `offset` (behind its name, one dimension and its encoding)."""
    at = raw.index(b"output_norm.weight") + len(b"output_norm.weight") + 16
    return raw[:at] + struct.pack("<Q", offset) + raw[at + 8 :]


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return TinyGguf().write(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


@given(data=st.data())
def test_any_damage_is_refused_or_harmless(whole_file: bytes, data: st.DataObject) -> None:
    raw = bytearray(whole_file)
    header = raw.index(b"output_norm.weight") + 64
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, header))] = data.draw(st.integers(0, 255))
    with TemporaryDirectory() as scratch:
        source = Path(scratch, "tiny.gguf")
        source.write_bytes(raw[: data.draw(st.sampled_from([len(raw), header, header // 2]))])
        try:
            folder = converted(source)
        except ModelError:
            return
        check_folder("tiny", folder)
