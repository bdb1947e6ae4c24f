"""The numpy kernels of the CPU path against MLX's own attention and SwiGLU."""

import sys
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentcache.adapters.mlx import blas

blas.load()

import mlx.core as mx  # noqa: E402
import mlx_lm.models.llama as llama_models  # noqa: E402
from mlx_lm.models import activations  # noqa: E402

from agentcache.adapters.mlx import cpu, cpu_attention, handles  # noqa: E402
from agentcache.adapters.mlx.cpu_activation import swiglu  # noqa: E402
from agentcache.adapters.mlx.cpu_attention import (  # noqa: E402
    FloatArray,
    Mask,
    MaskArray,
    attention,
)

MLX_ATTENTION = mx.fast.scaled_dot_product_attention
MLX_SWIGLU = activations.swiglu

HEADS = st.sampled_from([(1, 1), (4, 4), (9, 3), (8, 1), (16, 2)])
DIMS = st.sampled_from([(64, 64), (40, 40), (80, 80), (112, 112), (48, 32)])
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def inputs(draw: st.DrawFn, queries: st.SearchStrategy[int]) -> tuple[FloatArray, ...]:
    """q as a model's transpose leaves it; k and v as the first rows of larger buffers."""
    rng = np.random.default_rng(draw(SEEDS))
    (heads, kv_heads), (dim, v_dim) = draw(HEADS), draw(DIMS)
    batch, length, keys = draw(st.integers(1, 3)), draw(queries), draw(st.integers(1, 400))
    q = rng.standard_normal((batch, length, heads, dim), np.float32).swapaxes(1, 2)
    k = rng.standard_normal((batch, kv_heads, keys + 5, dim), np.float32)[:, :, :keys]
    v = rng.standard_normal((batch, kv_heads, keys + 5, v_dim), np.float32)[:, :, :keys]
    return q, k, v


DECODES = inputs(st.just(1))
PREFILLS = inputs(st.integers(2, 90))


def sinks_for(q: FloatArray) -> FloatArray:
    return np.linspace(-2, 3, q.shape[1], dtype=np.float32)


def mlx_says(
    q: FloatArray, k: FloatArray, v: FloatArray, mask: Mask = None, sinks: FloatArray | None = None
) -> FloatArray:
    out = MLX_ATTENTION(
        mx.array(q),
        mx.array(k),
        mx.array(v),
        scale=q.shape[-1] ** -0.5,
        mask=mx.array(mask) if isinstance(mask, np.ndarray) else mask,
        sinks=None if sinks is None else mx.array(sinks),
    )
    return np.asarray(out)


def assert_as_mlx(
    q: FloatArray,
    k: FloatArray,
    v: FloatArray,
    mask: Mask = None,
    sinks: FloatArray | None = None,
    atol: float = 2e-5,
) -> None:
    ours = attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask, sinks=sinks)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, mlx_says(q, k, v, mask, sinks), atol=atol, rtol=1e-4)


def window(q: FloatArray, k: FloatArray, width: int) -> MaskArray:
    """What mlx-lm gives a sliding-window layer: True for the last `width` keys of each query."""
    length, keys = q.shape[2], k.shape[2]
    query, key = np.arange(keys - length, keys)[:, None], np.arange(keys)
    return (key <= query) & (key > query - width)


@given(DECODES)
def test_decoding_one_token_equals_mlx(qkv: tuple[FloatArray, ...]) -> None:
    assert_as_mlx(*qkv)
    assert_as_mlx(*qkv, mask="causal")
    assert_as_mlx(*qkv, sinks=sinks_for(qkv[0]))


@given(PREFILLS)
def test_causal_attention_equals_mlx_with_and_without_keys_before_the_queries(
    qkv: tuple[FloatArray, ...],
) -> None:
    assert_as_mlx(*qkv, mask="causal")


@given(PREFILLS)
def test_attention_without_a_mask_equals_mlx(qkv: tuple[FloatArray, ...]) -> None:
    assert_as_mlx(*qkv)


@given(DECODES | PREFILLS, st.integers(1, 60))
def test_a_window_given_as_a_boolean_mask_equals_mlx(
    qkv: tuple[FloatArray, ...], width: int
) -> None:
    assert_as_mlx(*qkv, mask=window(*qkv[:2], width))


@given(DECODES | PREFILLS, SEEDS, st.booleans())
def test_boolean_masks_of_any_broadcast_shape_equal_mlx(
    qkv: tuple[FloatArray, ...], seed: int, per_head: bool
) -> None:
    q, k, _ = qkv
    shape = (q.shape[0], q.shape[1] if per_head else 1, q.shape[2], k.shape[2])
    assert_as_mlx(*qkv, mask=np.random.default_rng(seed).random(shape) < 0.3)


@given(DECODES | PREFILLS, SEEDS)
def test_additive_masks_equal_mlx(qkv: tuple[FloatArray, ...], seed: int) -> None:
    shape = (qkv[0].shape[1], 1, qkv[1].shape[2])
    mask = np.random.default_rng(seed).standard_normal(shape, np.float32)
    assert_as_mlx(*qkv, mask=mask)


@given(PREFILLS)
def test_sinks_equal_mlx_under_every_kind_of_mask(qkv: tuple[FloatArray, ...]) -> None:
    seen = window(*qkv[:2], 9)
    sinks = sinks_for(qkv[0])
    masks: list[Mask] = [None, "causal", seen, np.where(seen, 0, -np.inf).astype(np.float32)]
    for mask in masks:
        assert_as_mlx(*qkv, mask=mask, sinks=sinks)


def long_prompt(length: int, before: int = 0) -> tuple[FloatArray, FloatArray, FloatArray]:
    rng = np.random.default_rng(7)
    q = rng.standard_normal((1, 6, length, 32), np.float32)
    k = rng.standard_normal((1, 2, before + length, 32), np.float32)
    return q, k, rng.standard_normal(k.shape, np.float32)


@pytest.mark.parametrize("before", [0, 300])
def test_a_prompt_of_many_tiles_spread_over_threads_equals_mlx(before: int) -> None:
    q, k, v = long_prompt(700, before)
    with blas.threads(2):
        assert_as_mlx(q, k, v, mask="causal")
        assert_as_mlx(q, k, v, mask=window(q, k, 64))


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    q, k, v = long_prompt(700)
    results = []
    for threads in (1, 2, 3):
        with blas.threads(threads):
            results.append(attention(q, k, v, scale=0.2, mask="causal"))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("copyless", [False, True])
@pytest.mark.parametrize("length", [2, 9, 30, 64])
def test_a_few_queries_over_many_keys_equal_mlx_on_any_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, copyless: bool, length: int
) -> None:
    monkeypatch.setattr(cpu_attention, "copyless", lambda: copyless)
    q, k, v = long_prompt(length, 1500)
    results = []
    for threads in (1, 2, 3):
        with blas.threads(threads):
            assert_as_mlx(q, k, v, mask="causal")
            assert_as_mlx(q, k, v, mask=window(q, k, 700))
            results.append(attention(q, k, v, scale=0.2, mask="causal"))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_rows_whose_keys_are_all_hidden_average_the_values_as_in_mlx() -> None:
    q, k, v = long_prompt(40)
    mask = np.tri(40, dtype=np.bool_)
    mask[11] = False
    assert_as_mlx(q, k, v, mask=mask)
    assert_as_mlx(q, k[:, :, :25], v[:, :, :25], mask="causal")
    hidden = attention(q, k, v, scale=1.0, mask=mask)[0, :3, 11]
    np.testing.assert_allclose(hidden, np.broadcast_to(v[0, 0].mean(0), (3, 32)), atol=1e-5)


def test_rows_that_an_additive_mask_hides_wholly_are_nan_as_in_mlx_and_zero_with_sinks() -> None:
    q, k, v = long_prompt(40)
    mask = np.zeros((40, 40), np.float32)
    mask[11] = -np.inf
    assert_as_mlx(q, k, v, mask=mask)
    assert np.isnan(attention(q, k, v, scale=1.0, mask=mask)[:, :, 11]).all()
    assert_as_mlx(q, k, v, mask=mask, sinks=sinks_for(q))
    assert not attention(q, k, v, scale=1.0, mask=mask, sinks=sinks_for(q))[:, :, 11].any()


def test_no_keys_give_zeros_as_in_mlx() -> None:
    q, k, v = long_prompt(4)
    assert_as_mlx(q, k[:, :, :0], v[:, :, :0])


def test_scores_of_hundreds_do_not_overflow() -> None:
    q, k, v = long_prompt(40)
    rounding = 1e-3  # of scores up to a thousand, whose exponentials are taken
    assert_as_mlx(30 * q, 30 * k, v, mask="causal", atol=rounding)
    assert_as_mlx(30 * q[:, :, -1:], 30 * k, v, atol=rounding)


def test_an_unknown_mask_name_and_unequal_lengths_are_refused() -> None:
    q, k, v = long_prompt(4)
    with pytest.raises(ValueError, match="upside down"):
        attention(q, k, v, scale=1.0, mask="upside down")
    with pytest.raises(ValueError, match="do not fit"):
        attention(q, k, v[:, :, :3], scale=1.0)
    with pytest.raises(ValueError, match="do not fit"):
        attention(q[:, :5], k, v, scale=1.0)


@given(st.integers(1, 40), st.sampled_from([1, 3, 64, 300]), SEEDS)
@example(2_000, 300, 0)
@example(1, 70_000, 0)
def test_swiglu_equals_mlx(rows: int, width: int, seed: int) -> None:
    both = np.random.default_rng(seed).standard_normal((1, rows, 2 * width), np.float32) * 20
    gate, x = both[..., :width], both[..., width:]  # views, as a fused projection is split
    wanted = np.asarray(MLX_SWIGLU(mx.array(gate), mx.array(x)))
    with blas.threads(2):
        np.testing.assert_allclose(swiglu(gate, x), wanted, atol=1e-5, rtol=1e-5)


def test_swiglu_of_huge_gates_equals_mlx_without_a_warning() -> None:
    gate = np.array([[-1e38, -100, 100, 1e38, -np.inf, np.inf, np.nan]], np.float32)
    ours = swiglu(gate, np.ones_like(gate))
    wanted = np.asarray(MLX_SWIGLU(mx.array(gate), mx.ones(gate.shape)))
    np.testing.assert_allclose(ours, wanted, atol=1e-20)


@pytest.fixture(scope="module", autouse=True)
def _mlx_as_it_comes() -> None:
    """Whatever engines have put over it before is taken off."""
    handles.uninstall()
    cpu.uninstall()


@pytest.fixture
def installed() -> Iterator[None]:
    cpu.install()
    yield
    cpu.uninstall()


class Recorder:
    """Stands where MLX's attention stood, and counts who falls through to it."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *args: object, **options: object) -> mx.array:
        self.calls += 1
        return MLX_ATTENTION(*args, **options)


@pytest.fixture
def below(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """The CPU path installed over a recorder of what it leaves to MLX."""
    recorder = Recorder()
    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", recorder)
    cpu.install()
    yield recorder
    cpu.uninstall()


def mlx_inputs(dtype: mx.Dtype = mx.float32) -> tuple[mx.array, mx.array, mx.array]:
    q, k, v = (mx.array(array).astype(dtype) for array in long_prompt(20))
    return q, k, v


def call(*qkv: mx.array, **options: object) -> mx.array:
    return mx.fast.scaled_dot_product_attention(*qkv, scale=0.2, **options)


def test_float32_on_the_cpu_is_answered_by_numpy_and_equals_mlx(below: Recorder) -> None:
    q, k, v = mlx_inputs()
    for mask in (None, "causal", mx.tri(20, dtype=mx.bool_), mx.zeros((20, 20), mx.bfloat16)):
        ours = call(q, k, v, mask=mask, sinks=mx.zeros(6, mx.float16))
        theirs = MLX_ATTENTION(q, k, v, scale=0.2, mask=mask, sinks=mx.zeros(6))
        assert mx.allclose(ours, theirs, atol=1e-5)
    assert below.calls == 0


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_falls_through_to_what_stood_there_before(
    below: Recorder, dtype: mx.Dtype
) -> None:
    assert call(*mlx_inputs(dtype)).dtype == dtype
    assert below.calls == 1


def test_a_call_that_names_a_stream_falls_through(below: Recorder) -> None:
    call(*mlx_inputs(), stream=mx.cpu)
    assert below.calls == 1


def test_a_traced_call_falls_through_and_compiles(below: Recorder) -> None:
    """Without a C++ compiler MLX traces nothing: then the call is like any other."""
    q, k, v = mlx_inputs()
    traced: list[bool] = []

    def function(*qkv: mx.array) -> mx.array:
        traced.append(_is_traced(qkv[0]))
        return call(*qkv) * 2

    compiled = mx.compile(function)
    expected = 2 * MLX_ATTENTION(q, k, v, scale=0.2)
    assert mx.allclose(compiled(q, k, v), expected, atol=1e-5)
    assert below.calls == sum(traced)


def _is_traced(array: mx.array) -> bool:
    try:
        mx.eval(array)
    except ValueError:
        return True
    return False


@pytest.mark.usefixtures("installed")
def test_a_second_install_does_not_lose_the_originals() -> None:
    cpu.install()
    cpu.uninstall()
    assert mx.fast.scaled_dot_product_attention is MLX_ATTENTION
    assert activations.swiglu is MLX_SWIGLU


def test_uninstall_puts_back_attention_and_every_copy_of_swiglu() -> None:
    cpu.install()
    replaced = activations.swiglu
    assert mx.fast.scaled_dot_product_attention is not MLX_ATTENTION
    assert llama_models.swiglu is replaced is not MLX_SWIGLU
    late = ModuleType("model_loaded_after_install")
    late.swiglu = replaced
    sys.modules[late.__name__] = late
    cpu.uninstall()
    del sys.modules[late.__name__]
    assert mx.fast.scaled_dot_product_attention is MLX_ATTENTION
    assert activations.swiglu is llama_models.swiglu is late.swiglu is MLX_SWIGLU


def test_uninstall_refuses_while_another_wrapper_stands_over_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu.install()
    with monkeypatch.context() as patch:
        patch.setattr(mx.fast, "scaled_dot_product_attention", Recorder())
        with pytest.raises(RuntimeError, match="unwrap"):
            cpu.uninstall()
        assert activations.swiglu is not MLX_SWIGLU
    cpu.uninstall()
    assert mx.fast.scaled_dot_product_attention is MLX_ATTENTION


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("shape", [(1, 8), (1, 7, 1536), (2, 300, 64)])
def test_an_installed_swiglu_equals_mlx_in_every_dtype(shape: tuple[int, ...]) -> None:
    gate, x = mx.random.normal(shape), mx.random.normal(shape)
    assert mx.allclose(llama_models.swiglu(gate, x), MLX_SWIGLU(gate, x), atol=1e-5)
    half = llama_models.swiglu(gate.astype(mx.bfloat16), x.astype(mx.bfloat16))
    assert half.dtype == mx.bfloat16


@pytest.mark.usefixtures("installed")
def test_swiglu_still_broadcasts_and_compiles() -> None:
    gate, x = mx.random.normal((300, 64)), mx.random.normal((64,))
    assert mx.allclose(llama_models.swiglu(gate, x), MLX_SWIGLU(gate, x), atol=1e-5)
    wide = mx.random.normal((300, 64))
    compiled = mx.compile(lambda a, b: llama_models.swiglu(a, b) + 1)
    assert mx.allclose(compiled(gate, wide), MLX_SWIGLU(gate, wide) + 1, atol=1e-5)
