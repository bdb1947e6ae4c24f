"""Products of few rows: numpy's answer is MLX's, and MLX gets what numpy does not take."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcache.adapters.mlx import blas

blas.load()

import mlx.core as mx  # noqa: E402
from mlx.nn.layers.embedding import Embedding  # noqa: E402
from mlx.nn.layers.linear import Linear  # noqa: E402

from agentcache.adapters.mlx import cpu, cpu_linear, handles  # noqa: E402

TOLERANCE = 2e-5


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


def random(shape: tuple[int, ...], seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@given(
    rows=st.integers(1, 64),
    width=st.integers(1, 96) | st.sampled_from([1536, 3900]),
    outs=st.integers(1, 300),
    seed=st.integers(0, 99),
)
def test_a_product_is_that_of_the_definition(rows: int, width: int, outs: int, seed: int) -> None:
    x, weight = random((rows, width), seed), random((outs, width), seed + 1)
    expected = x.astype(np.float64) @ weight.T.astype(np.float64)
    got = cpu_linear.product(x, weight)
    assert got.shape == (rows, outs)
    assert np.abs(got - expected).max() <= TOLERANCE * max(1.0, np.abs(expected).max())


@given(
    rows=st.integers(1, 8),
    width=st.sampled_from([64, 576, 1536]),
    outs=st.integers(1, 5000),
    threads=st.integers(2, 5),
)
@settings(max_examples=25, deadline=None)
def test_a_product_of_a_few_rows_is_the_same_bit_for_bit_on_any_number_of_threads(
    rows: int, width: int, outs: int, threads: int
) -> None:
    x, weight = random((rows, width), rows), random((outs, width), outs)
    with blas.threads(1):
        alone = cpu_linear.product(x, weight)
    with blas.threads(threads):
        shared = cpu_linear.product(x, weight)
    assert alone.tobytes() == shared.tobytes()
    expected = x.astype(np.float64) @ weight.T.astype(np.float64)
    assert np.abs(shared - expected).max() <= TOLERANCE * max(1.0, np.abs(expected).max())


def test_threads_share_a_large_weight_and_leave_a_small_one_to_the_caller() -> None:
    """Which of them take part is left to chance, so what is looked at is what they are offered."""
    large, small = cpu_linear.shares(1536, 576), cpu_linear.shares(192, 576)
    assert (len(large), len(small)) == (4, 1)
    assert [at for one in large for at in range(*one.indices(1536))] == list(range(1536))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("lead", [(1, 1), (8, 1), (1, 5), (2, 3), (1, 40)])
def test_a_linear_layer_says_what_mlx_says(lead: tuple[int, ...]) -> None:
    layer = Linear(512, 450, bias=False)
    x = mx.array(random((*lead, 512), 3))
    expected = x @ layer["weight"].T
    assert layer(x).shape == expected.shape
    assert mx.allclose(layer(x), expected, rtol=0, atol=TOLERANCE).item()


@pytest.mark.usefixtures("installed")
def test_a_tied_head_says_what_mlx_says() -> None:
    embedding = Embedding(1000, 256)
    x = mx.array(random((3, 1, 256), 5))
    expected = x @ embedding["weight"].T
    assert mx.allclose(embedding.as_linear(x), expected, rtol=0, atol=TOLERANCE).item()


@pytest.mark.usefixtures("installed")
def test_a_layer_with_a_bias_keeps_it() -> None:
    layer = Linear(512, 450, bias=True)
    x = mx.array(random((1, 1, 512), 7))
    expected = x @ layer["weight"].T + layer["bias"]
    assert mx.allclose(layer(x), expected, rtol=0, atol=TOLERANCE).item()


@pytest.mark.usefixtures("installed")
def test_half_precision_stays_with_mlx() -> None:
    layer = Linear(512, 450, bias=False)
    layer.set_dtype(mx.float16)
    out = layer(mx.array(random((1, 1, 512), 9)).astype(mx.float16))
    assert out.dtype == mx.float16


@pytest.mark.parametrize("rows", [9, 16, 30, 64])
def test_the_number_of_threads_does_not_change_a_bit(rows: int) -> None:
    x, weight = random((rows, 576), 1), random((1500, 576), 2)
    with blas.threads(1):
        alone = cpu_linear.product(x, weight)
    with blas.threads(2):
        assert np.array_equal(cpu_linear.product(x, weight), alone)


def test_a_row_gets_the_same_whoever_else_is_in_the_product() -> None:
    """So a sequence does not depend on its neighbours where the product is of as many rows."""
    x, weight = random((30, 576), 1), random((1500, 576), 2)
    other = np.concatenate([x[:1], random((29, 576), 3)])
    got = [cpu_linear.product(rows, weight)[0] for rows in (x, other)]
    assert np.array_equal(*got)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("copyless", [False, True])
def test_numpy_answers_for_as_few_rows_as_its_kernels_suit_and_mlx_for_more(
    monkeypatch: pytest.MonkeyPatch, copyless: bool
) -> None:
    most = 64 if copyless else cpu_linear.MOST_ROWS
    monkeypatch.setattr(cpu_linear, "copyless", lambda: copyless)
    seen: list[int] = []
    product = cpu_linear.product

    def watched(x: cpu_linear.FloatArray, weight: cpu_linear.FloatArray) -> cpu_linear.FloatArray:
        seen.append(len(x))
        return product(x, weight)

    monkeypatch.setattr(cpu_linear, "product", watched)
    layer = Linear(512, 450, bias=False)
    for rows in (1, most, most + 1):
        mx.eval(layer(mx.array(random((rows, 512), rows))))
    assert seen == [1, most]


def test_rows_too_wide_for_small_kernels_stay_with_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_linear, "copyless", lambda: True)
    assert cpu_linear.takes(30, 576)
    assert cpu_linear.takes(50, 1536)
    assert not cpu_linear.takes(30, 8192)
    assert cpu_linear.takes(1, 8192)


def test_uninstalling_puts_mlx_back() -> None:
    before = Linear.__call__, Embedding.as_linear
    cpu.install()
    assert Linear.__call__ is not before[0]
    cpu.uninstall()
    assert (Linear.__call__, Embedding.as_linear) == before
