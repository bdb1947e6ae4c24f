"""What `MLXEngine.load` makes of different folders and models."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from agentcache.domain.errors import ModelError
from agentcache.domain.spec import CacheSpec, LayerSpec
from agentcache.testing.driving import Driver, copied
from tests.tiny_models import END, VOCABULARY, tiny_llama, tiny_model

import mlx.core as mx  # isort: skip  (after the BLAS)
from mlx import nn  # isort: skip
from mlx.utils import tree_flatten  # isort: skip
from mlx_lm.models.cache import make_prompt_cache  # isort: skip
from mlx_lm.utils import load_model  # isort: skip

from agentcache.adapters.mlx.arrays import ArrayCache  # isort: skip
from agentcache.adapters.mlx.engine import MLXEngine  # isort: skip
from agentcache.adapters.mlx.fitting import Batching  # isort: skip
from agentcache.adapters.mlx.forward import Forward  # isort: skip

PROMPT = [9 * n % 250 + 3 for n in range(30)]
SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
MODELS: dict[str, Mapping[str, object]] = {
    "qwen3": {**SHAPE, "model_type": "qwen3", "head_dim": 16},
    "granite": {
        **SHAPE,
        "model_type": "granite",
        "logits_scaling": 4.0,
        "attention_multiplier": 0.25,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "deepseek_v2": {
        **SHAPE,
        "model_type": "deepseek_v2",
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "q_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 12,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "rope_scaling": {
            "type": "yarn",
            "factor": 2.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 256,
            "beta_fast": 32,
            "beta_slow": 1,
        },
    },
}


@pytest.mark.parametrize("cpu_path", [True, False], ids=["numpy buffers", "mlx caches"])
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_models_of_other_shapes_restore_and_decode_together(
    tmp_path: Path, config: Mapping[str, object], cpu_path: bool
) -> None:
    folder = tiny_model(tmp_path, 1, config)
    driver = Driver(MLXEngine.load(folder, b"x", "x", cpu_path=cpu_path))
    live = [driver.begin(1, PROMPT), *driver.decode(1, steps=4)[0]]
    driver.restore(2, copied(driver.engine.export(1, 0, 20)))
    first = driver.prefill(2, PROMPT[20:], 20)
    driver.begin(3, PROMPT[:5])
    assert [first, *driver.decode(3, 2, steps=4)[1]] == live
    driver.engine.close()


@pytest.mark.parametrize(("name", "apart"), [("qwen3", True), ("granite", False)])
def test_the_head_runs_on_the_last_position_only_where_that_gives_the_models_own_logits(
    tmp_path: Path, name: str, apart: bool
) -> None:
    model, _ = load_model(tiny_model(tmp_path, 1, MODELS[name]))
    forward = Forward.of(model)
    assert forward.apart is apart
    ours = forward.last(PROMPT, make_prompt_cache(model))
    assert mx.allclose(ours, model(mx.array([PROMPT]))[:, -1], atol=1e-4).item()


def test_keys_and_values_of_unequal_dims_are_kept_as_they_are(tmp_path: Path) -> None:
    engine = MLXEngine.load(tiny_model(tmp_path, 1, MODELS["deepseek_v2"]), b"x", "x")
    assert all(layer.key_dim != layer.value_dim for layer in engine.card.spec.layers)
    engine.close()


def test_a_model_whose_rope_takes_no_array_decodes_one_by_one(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, 1, rope_scaling={"type": "dynamic", "factor": 2.0})
    engine = MLXEngine.load(folder, b"x", "x")
    driver = Driver(engine)
    assert engine.batching.mode == "single"
    assert engine.batching.reason
    alone = [[driver.begin(n, PROMPT[n:]), *driver.decode(n, steps=3)[0]] for n in (0, 5)]
    firsts = [driver.begin(10 + n, PROMPT[n:]) for n in (0, 5)]
    together = driver.decode(10, 15, steps=3)
    assert [[one, *rest] for one, rest in zip(firsts, together, strict=True)] == alone
    driver.engine.close()


def test_the_card_says_what_the_folder_says(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, 1, layers=3, context=777)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    engine = MLXEngine.load(folder, b"digest", "name", ends=[11])
    card = engine.card
    assert (card.name, card.digest, card.context) == ("name", b"digest", 777)
    assert card.vocabulary == VOCABULARY
    assert card.ends == {END, 7, 8, 11}
    assert card.spec.layers == (LayerSpec.full(2, 16),) * 3
    assert engine.batching == Batching("ragged")
    engine.close()


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_half_weights_are_run_in_float32(tmp_path: Path, dtype: mx.Dtype) -> None:
    engine = MLXEngine.load(tiny_llama(tmp_path, 1, dtype=dtype), b"x", "x")
    assert engine.card.spec.dtype == "float32"
    engine.close()


def test_quantised_weights_are_run_as_what_they_stand_for(tmp_path: Path) -> None:
    folder = _quantised(tiny_llama(tmp_path, 1))
    reference, _ = load_model(folder)
    driver = Driver(MLXEngine.load(folder, b"x", "x"))
    assert driver.begin(1, PROMPT) == mx.argmax(reference(mx.array([PROMPT]))[0, -1]).item()
    driver.engine.close()


def test_a_folder_without_weights_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not an MLX folder.*Give a folder"):
        MLXEngine.load(tmp_path, b"x", "x")


def test_a_missing_weight_is_refused(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, 1)
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    weights.pop("model.norm.weight")
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    with pytest.raises(ModelError, match=r"model\.norm\.weight"):
        MLXEngine.load(folder, b"x", "x")


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, 1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "abacus"}))
    with pytest.raises(ModelError, match="abacus"):
        MLXEngine.load(folder, b"x", "x")


def test_bfloat16_rows_cross_as_their_bits() -> None:
    spec = CacheSpec((LayerSpec.full(2, 8),), "bfloat16")
    cache = ArrayCache.of(spec, 16)
    rows = mx.random.normal((1, 2, 5, 8)).astype(mx.bfloat16)
    cache.leaves[0].update_and_fetch(rows, rows)
    kept = cache.rows(0, 5)
    other = ArrayCache.of(spec, 16)
    np.copyto(other.blank(5).full["g0.k"], kept.full["g0.k"])
    other.adopt(5)
    assert kept.full["g0.k"].dtype == np.uint16
    assert mx.array_equal(other.leaves[0].keys[:, :, :5], rows).item()


def _quantised(folder: Path) -> Path:
    model, config = load_model(folder)
    nn.quantize(model, group_size=32, bits=8)  # type: ignore[attr-defined]
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    config["quantization"] = {"group_size": 32, "bits": 8}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
