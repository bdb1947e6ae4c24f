"""What a GGUF's metadata says of a Llama: its dimensions, and the config.json that follows."""

from collections.abc import Mapping

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from agentcache.adapters.models.gguf_file import BadGguf, GgufFile, Value

RopeScaling = dict[str, str | int | float]

_ROPE_FACTORS = "rope_freqs.weight"


@frozen
class LlamaShape:
    """The dimensions of a Llama model and its rotary embedding."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    eps: float
    theta: float
    scaling: RopeScaling | None

    @classmethod
    def of(cls, gguf: GgufFile) -> "LlamaShape":
        """Read the shape. Raises BadGguf for another architecture, or what does not add up."""
        meta = _Metadata(gguf.metadata)
        _refuse_others(meta)
        hidden, heads = meta.count("llama.embedding_length"), meta.count(_HEADS)
        head_dim = meta.count("llama.attention.key_length", hidden // heads)
        theta = meta.number("llama.rope.freq_base", 10_000.0)
        shape = cls(
            layers=meta.count("llama.block_count"),
            hidden=hidden,
            intermediate=meta.count("llama.feed_forward_length"),
            heads=heads,
            kv_heads=meta.count("llama.attention.head_count_kv", heads),
            head_dim=head_dim,
            vocab=len(meta.strings("tokenizer.ggml.tokens")),
            context=meta.count("llama.context_length"),
            eps=meta.number("llama.attention.layer_norm_rms_epsilon"),
            theta=theta,
            scaling=_scaling(meta) or _scaling_of_factors(gguf, theta, head_dim),
        )
        shape._check(meta)
        return shape

    def _check(self, meta: "_Metadata") -> None:
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise BadGguf(
                f"{self.heads} heads of dim {self.head_dim} cannot share {self.kv_heads} KV heads"
            )
        for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
            if meta.count(key, self.head_dim) != self.head_dim:
                raise BadGguf(f"its {key} is not its head dim {self.head_dim}: not supported")

    def config(self, *, dtype: str, tied: bool, bias: bool) -> dict[str, object]:
        """The config.json of the model, as `transformers` and mlx-lm spell it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": bias,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": self.context,
            "mlp_bias": False,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": self.eps,
            "rope_scaling": self.scaling,
            "rope_theta": self.theta,
            "tie_word_embeddings": tied,
            "torch_dtype": dtype,
            "vocab_size": self.vocab,
        }


_HEADS = "llama.attention.head_count"


class _Metadata:
    """Typed access to GGUF metadata; a missing or odd value is BadGguf."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = values

    def text(self, key: str, default: str | None = None) -> str:
        value = self._values.get(key, default)
        if not isinstance(value, str):
            raise BadGguf(f"its {key} is {_shown(value)}, not a text")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        value = self._values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BadGguf(f"its {key} is {_shown(value)}, not a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._values.get(key, default)
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise BadGguf(f"its {key} is {_shown(value)}, not a positive number")
        # float32 in the file: shortest decimal that means the same, so 1e-05 and not 9.99999e-06
        return float(str(np.float32(value)))

    def strings(self, key: str) -> list[str]:
        value = self._values.get(key)
        if not isinstance(value, list) or not value or not isinstance(value[0], str):
            raise BadGguf(f"its {key} is {_shown(value)}, not a list of texts")
        return value

    def states(self, key: str) -> bool:
        """Whether `key` is there with a value other than 0 or empty."""
        return bool(self._values.get(key))


def _shown(value: Value | None) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "missing" if value is None else repr(value)[:40]


def _refuse_others(meta: _Metadata) -> None:
    architecture = meta.text("general.architecture")
    if architecture != "llama":
        raise BadGguf(f"its architecture is {architecture[:40]!r}; only llama can be converted")
    for key, what in (
        ("llama.expert_count", "a mixture of experts"),
        ("llama.attention.sliding_window", "sliding-window attention"),
    ):
        if meta.states(key):
            raise BadGguf(f"it has {what}, which cannot be converted")
    if meta.states("split.count") and meta.count("split.count") > 1:
        raise BadGguf("it is one part of a split GGUF; merge the parts first")


def _scaling(meta: _Metadata) -> RopeScaling | None:
    kind = meta.text("llama.rope.scaling.type", "none")
    if kind == "none":
        return None
    factor = meta.number("llama.rope.scaling.factor", 1.0)
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn" or meta.number("llama.rope.scaling.attn_factor", 1.0) != 1.0:
        raise BadGguf(f"its rope scaling {kind[:40]!r} is not supported")
    original = meta.count("llama.rope.scaling.original_context_length")
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
    }


def _scaling_of_factors(gguf: GgufFile, theta: float, head_dim: int) -> RopeScaling | None:
    """Llama 3's scaling, which a GGUF holds as one divisor per frequency and not as parameters."""
    tensor = gguf.tensors.get(_ROPE_FACTORS)
    if tensor is None:
        return None
    if tensor.shape != (head_dim // 2,):
        raise BadGguf(f"tensor {_ROPE_FACTORS!r} has shape {tensor.shape}, not {(head_dim // 2,)}")
    factors = gguf.load(tensor)
    factor = float(factors.max())
    if not np.allclose(factors, _llama3_factors(theta, head_dim, factor), rtol=1e-3):
        raise BadGguf(f"tensor {_ROPE_FACTORS!r} is not the rope scaling of Llama 3")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": _ORIGINAL,
    }


_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192


def _llama3_factors(theta: float, head_dim: int, factor: float) -> NDArray[np.float64]:
    """What Llama 3 divides each frequency by (the scaling published with its 3.1 release)."""
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (_ORIGINAL / wavelengths - _LOW) / (_HIGH - _LOW)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(
        wavelengths < _ORIGINAL / _HIGH,
        1.0,
        np.where(wavelengths > _ORIGINAL / _LOW, factor, between),
    )
