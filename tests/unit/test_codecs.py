"""The contract of codecs over each of ours, and what each promises about its loss."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcache.adapters.codecs import CODECS, codec
from agentcache.adapters.codecs.rotation import rotated
from agentcache.domain.spec import CacheSpec, LayerSpec
from agentcache.ports.payload import Payload
from agentcache.ports.rows import RowArray, empty_rows
from agentcache.testing import strategies
from agentcache.testing.codec import CodecContract
from agentcache.testing.row_values import MIXED, SMOLLM, as_bytes, as_float, decoded, filled

lossy = pytest.mark.parametrize("name", [name for name in CODECS if name != "native"])
# Half a unit in the last place, relative to the number.
ROUNDING = {"float32": 2**-24, "float16": 2**-11, "bfloat16": 2**-8}


class TestNative(CodecContract):
    codec = codec("native")


class TestF16(CodecContract):
    codec = codec("f16")


class TestQ8(CodecContract):
    codec = codec("q8")


class TestK8V4(CodecContract):
    codec = codec("k8v4")


class TestQ4(CodecContract):
    codec = codec("q4")


@given(st.data(), strategies.specs(), st.integers(0, 9))
def test_native_gives_back_every_bit_of_any_cache(data, spec, count):
    rows = data.draw(strategies.rows(spec, count, wild=True))
    payload = codec("native").encode(spec, rows)
    assert as_bytes(decoded(codec("native"), spec, payload, 0, count)) == as_bytes(rows)


@given(st.data(), strategies.specs(), st.integers(1, 6))
def test_q8_is_off_by_half_a_step_of_the_groups_range_at_most(data, spec, count):
    rows = data.draw(strategies.rows(spec, count))
    restored = decoded(codec("q8"), spec, codec("q8").encode(spec, rows), 0, count)
    for role, array in {**rows.full, **rows.window}.items():
        before = as_float(array, spec.dtype)
        # A group never spans more than its layer's row; storing the result rounds once more.
        ranges = np.ptp(before, axis=(1, 3), keepdims=True) if before.size else np.zeros(1)
        rounding = max(ROUNDING[spec.dtype], 2**-22)
        after = as_float({**restored.full, **restored.window}[role], spec.dtype)
        step = ranges / 255
        allowed = step / 2 * 1.001 + (np.abs(before) + step) * rounding * 1.001 + 2**-24
        assert (np.abs(before - after) <= allowed).all()


@given(data=st.data(), spec=strategies.specs(), count=st.integers(1, 6))
def test_f16_is_off_by_half_a_unit_of_float16_at_most(data, spec, count):
    rows = data.draw(strategies.rows(spec, count))
    restored = decoded(codec("f16"), spec, codec("f16").encode(spec, rows), 0, count)
    for role, array in rows.full.items():
        before, after = (as_float(one, spec.dtype) for one in (array, restored.full[role]))
        allowed = np.maximum(np.abs(before) * 2**-11, 2**-25) if spec.dtype == "float32" else 0
        assert (np.abs(before - after) <= allowed).all()


@given(data=st.data(), spec=strategies.full_specs(), count=st.integers(1, 6))
def test_q4_is_off_by_half_a_step_of_its_group_at_most_in_the_rotated_basis(data, spec, count):
    rows = data.draw(strategies.rows(spec, count + 1)).part(1, count + 1)
    restored = decoded(codec("q4"), spec, codec("q4").encode(spec, rows), 0, count)
    for role, array in rows.full.items():
        before, after = (as_float(one, spec.dtype) for one in (array, restored.full[role]))
        exact, found = in_groups(before), in_groups(after)
        step = (np.ptp(exact, axis=-1) + np.abs(exact.min(axis=-1)) / 128) / 15
        largest = np.abs(before).max(axis=(1, 3), initial=0).T[..., None]
        dim = array.shape[3]
        # Storing the result rounds each of a head's numbers; the rotation adds up what that costs.
        stored = (largest + step * dim) * (ROUNDING[spec.dtype] * dim + 2**-20)
        allowed = step * (0.5 + 2**-7) + stored + 2**-24
        assert (np.abs(exact - found) <= allowed[..., None]).all()


def in_groups(array: RowArray) -> np.ndarray:
    """[layers, heads, rows, dim] rotated by a matrix and cut up as q4 documents it."""
    layers, heads, count, dim = array.shape
    flat = (array.astype(np.float64) @ rotation(dim)).transpose(2, 0, 1, 3)
    flat = flat.reshape(count, layers, heads * dim)
    padded = np.pad(flat, ((0, 0), (0, 0), (0, -heads * dim % 64)), "edge") if flat.size else flat
    return padded.reshape(count, layers, -(-heads * dim // 64), 64)


def rotation(dim: int) -> np.ndarray:
    """Sylvester's matrix times a Hartley transform, from their definitions."""
    odd = dim
    while odd and odd % 2 == 0:
        odd //= 2
    angles = 2 * np.pi / max(odd, 1) * np.outer(range(odd), range(odd))
    matrix = np.cos(angles) + np.sin(angles)
    while len(matrix) < dim:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(max(dim, 1))


@pytest.mark.parametrize("dim", [1, 3, 40, 64, 80, 96, 112, 128, 192, 256, 576])
def test_the_rotation_keeps_lengths_and_undoes_itself(dim):
    numbers = np.random.default_rng(dim).normal(size=(2, dim, 5)).astype(np.float32)
    once = rotated(numbers.copy())
    np.testing.assert_allclose(
        once, np.einsum("ij,hjc->hic", rotation(dim), numbers), rtol=0, atol=2e-5
    )
    np.testing.assert_allclose(
        np.linalg.norm(once, axis=1), np.linalg.norm(numbers, axis=1), rtol=1e-5
    )
    np.testing.assert_allclose(rotated(once), numbers, rtol=0, atol=2e-5)


def test_the_rotation_makes_what_stands_out_cost_little():
    spec = CacheSpec((LayerSpec.full(3, 64),))
    rows = filled(spec, 21).part(1, 21)
    rows.full["g0.v"][..., 7] = 60  # a channel that is always large, as in real models
    restored = decoded(codec("q4"), spec, codec("q4").encode(spec, rows), 0, 20).full["g0.v"]
    before = rows.full["g0.v"]
    step = np.ptp(before, axis=-1, keepdims=True) / 15
    plain = np.rint((before - before.min(axis=-1, keepdims=True)) / step) * step
    plain += before.min(axis=-1, keepdims=True)
    assert np.square(restored - before).mean() < np.square(plain - before).mean() / 3


@pytest.mark.parametrize(("start", "stop", "window_rows"), [(0, 3, 3), (0, 9, 4), (1, 9, 4)])
def test_q4_keeps_the_first_row_of_a_sequence_and_no_other_as_it_is(start, stop, window_rows):
    rows = filled(MIXED, stop).part(start, stop)
    restored = decoded(codec("q4"), MIXED, codec("q4").encode(MIXED, rows), 0, stop - start)
    for role, array in {**rows.full, **rows.window}.items():
        same = (array == {**restored.full, **restored.window}[role]).all(axis=(0, 1, 3))
        of_first = start == 0 and (role in rows.full or window_rows == stop)
        assert same.tolist() == [of_first] + [False] * (len(same) - 1)


def test_k8v4_is_q8_for_keys_and_q4_for_values():
    spec = CacheSpec((LayerSpec.full(2, 40, 24),) * 2)
    rows = filled(spec, 5)
    mixed, keys, values = (codec(name).encode(spec, rows).tensors for name in ("k8v4", "q8", "q4"))
    assert mixed.keys() == {f"g0.{role}.{part}" for role in "kv" for part in "qsbx"}
    for name, tensor in mixed.items():
        like = keys[name] if ".k." in name else values[name]
        assert bytes(tensor.data) == bytes(like.data)
        assert tensor.shape == like.shape


@lossy
@given(data=st.data(), spec=strategies.full_specs(), count=st.integers(1, 6))
def test_rows_that_are_not_finite_are_kept_to_the_bit(name, data, spec, count):
    rows = data.draw(strategies.rows(spec, count, wild=True))
    restored = decoded(codec(name), spec, codec(name).encode(spec, rows), 0, count)
    for role, array in rows.full.items():
        odd = ~np.isfinite(as_float(array, spec.dtype)).all(axis=(1, 3))
        before, after = array.transpose(0, 2, 1, 3)[odd], restored.full[role].transpose(0, 2, 1, 3)
        assert before.tobytes() == after[odd].tobytes()


@lossy
@given(data=st.data(), spec=strategies.full_specs(), count=st.integers(1, 6))
def test_finite_rows_stay_finite(name, data, spec, count):
    rows = data.draw(strategies.rows(spec, count, wild=True))
    restored = decoded(codec(name), spec, codec(name).encode(spec, rows), 0, count)
    for role, array in rows.full.items():
        finite = np.isfinite(as_float(array, spec.dtype)).all(axis=(1, 3))
        after = restored.full[role].transpose(0, 2, 1, 3)[finite]
        assert np.isfinite(as_float(after, spec.dtype)).all()


@lossy
def test_the_largest_finite_numbers_stay_finite_in_any_dtype(name):
    for dtype, largest in (("float32", 3.4e38), ("float16", 65504), ("bfloat16", 0x7F7F)):
        spec = CacheSpec((LayerSpec.full(1, 64),), dtype)
        rows = empty_rows(spec, 0, 2)
        for array in rows.full.values():
            array[...] = 0
            array[..., ::3] = largest
        restored = decoded(codec(name), spec, codec(name).encode(spec, rows), 0, 2)
        assert all(np.isfinite(as_float(one, dtype)).all() for one in restored.full.values())


@lossy
def test_the_kept_rows_of_a_part_are_found_that_does_not_begin_at_the_first(name):
    spec = CacheSpec((LayerSpec.full(1, 4),) * 2)
    rows = filled(spec, 6)
    for layer, row, value in ((0, 1, np.inf), (1, 1, -np.inf), (1, 4, np.nan)):
        rows.full["g0.k"][layer, 0, row, 2] = value
    part = decoded(codec(name), spec, codec(name).encode(spec, rows), 3, 6)
    assert part.full["g0.k"][1, 0, 1].tobytes() == rows.full["g0.k"][1, 0, 4].tobytes()


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("q8", [3e38, -3e38, 0, 1]), ("q4", [3e38, 1, 0, 1]), ("f16", [65520, 1 / 3, 0, 1])],
)
def test_a_finite_row_that_the_encoding_cannot_hold_is_kept(name, numbers):
    spec = CacheSpec((LayerSpec.full(1, 4),))
    rows = filled(spec, 2)
    rows.full["g0.k"][0, 0, 1] = numbers
    restored = decoded(codec(name), spec, codec(name).encode(spec, rows), 0, 2)
    assert restored.full["g0.k"][0, 0, 1].tolist() == rows.full["g0.k"][0, 0, 1].tolist()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_f16_loses_nothing_of_rows_that_are_16_bits_already(dtype):
    spec = CacheSpec((LayerSpec.full(2, 8),), dtype)
    rows = filled(spec, 4)
    payload = codec("f16").encode(spec, rows)
    assert payload.nbytes == codec("native").nbytes(spec, 4)
    assert as_bytes(decoded(codec("f16"), spec, payload, 0, 4)) == as_bytes(rows)


def test_q8_restores_the_smallest_numbers_to_within_their_own_size():
    spec = CacheSpec((LayerSpec.full(1, 4),))
    rows = filled(spec, 1)
    rows.full["g0.k"][0, 0, 0] = [0, 1e-45, 3e-44, 3.6e-43]
    restored = decoded(codec("q8"), spec, codec("q8").encode(spec, rows), 0, 1)
    np.testing.assert_allclose(
        restored.full["g0.k"][0, 0, 0], rows.full["g0.k"][0, 0, 0], rtol=0, atol=2e-43
    )


def test_the_padding_of_a_short_group_does_not_cost_precision():
    spec = CacheSpec((LayerSpec.full(1, 2),))
    rows = filled(spec, 1)
    rows.full["g0.k"][0, 0, 0] = [1000, 1001]
    restored = decoded(codec("q8"), spec, codec("q8").encode(spec, rows), 0, 1)
    np.testing.assert_allclose(restored.full["g0.k"][0, 0, 0], [1000, 1001], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "share"), [("f16", 0.5), ("q8", 0.30), ("k8v4", 0.22), ("q4", 0.15)]
)
def test_an_idle_agent_takes_this_share_of_a_native_one_at_most(name, share):
    rows = filled(SMOLLM, 200)
    payload = codec(name).encode(SMOLLM, rows)
    assert payload.nbytes <= share * codec("native").encode(SMOLLM, rows).nbytes


@lossy
def test_numbers_that_are_not_floating_are_refused_both_ways(name):
    spec = CacheSpec((LayerSpec.full(1, 4),), "int32")
    rows = filled(spec, 1)
    with pytest.raises(ValueError, match="not int32"):
        codec(name).encode(spec, rows)
    with pytest.raises(ValueError, match="not int32"):
        codec(name).decode(spec, Payload(name, 1, {}), rows)


def test_an_unknown_codec_is_refused_with_the_names_of_those_there_are():
    with pytest.raises(ValueError, match="there is no codec 'zip'; there are native, f16, q8"):
        codec("zip")
