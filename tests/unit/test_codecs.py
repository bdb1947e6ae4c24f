"""The contract of codecs, and what each promises about its loss."""

from itertools import pairwise
from math import prod
from threading import Thread

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from agentcache.adapters.codecs import CODECS, codec
from agentcache.adapters.codecs.rotation import rotated
from agentcache.domain.spec import CacheSpec, LayerKind, LayerSpec, StateArray
from agentcache.ports.payload import Payload, Tensor
from agentcache.ports.rows import RowArray, Rows, empty_rows
from agentcache.testing import strategies

codecs = pytest.mark.parametrize("name", CODECS)
lossy = pytest.mark.parametrize("name", [name for name in CODECS if name != "native"])
# Half a unit in the last place, relative to the number.
ROUNDING = {"float32": 2**-24, "float16": 2**-11, "bfloat16": 2**-8}
SMOLLM = CacheSpec((LayerSpec.full(3, 64),) * 30)
MIXED = CacheSpec(
    (
        LayerSpec.full(2, 40, 24),
        LayerSpec(LayerKind.WINDOW, 2, 40, 24, window=4),
        LayerSpec(LayerKind.STATE, state=(StateArray((2, 3), "float32"),)),
    )
)


def filled(spec: CacheSpec, count: int, seed: int = 0, slack: int = 0) -> Rows:
    noise = np.random.default_rng(seed)
    rows = empty_rows(spec, 0, count, count + slack)
    for array in arrays(rows).values():
        array[...] = noise.normal(0, 3, array.shape).astype(array.dtype)
    return rows


def run(spec: CacheSpec, rows: Rows, start: int, stop: int) -> Rows:
    """Rows [start, stop) as a segment holds them; `rows` has those of windows from 0 on."""
    sizes = {role: one.window or 0 for one in spec.groups for role, _ in one.roles()}
    window = {
        role: array[:, :, max(start, stop - sizes[role]) : stop]
        for role, array in rows.window.items()
    }
    return evolve(rows.part(start, stop), window=window, state=rows.state)


def unwindowed(rows: Rows) -> Rows:
    """`rows` with windows that never lost a row; what they had lost is of any bits."""
    noise = np.random.default_rng(0)
    window = {}
    for role, array in rows.window.items():
        lost = (*array.shape[:2], rows.stop - array.shape[2], array.shape[3])
        more = np.frombuffer(noise.bytes(prod(lost) * array.itemsize), array.dtype).reshape(lost)
        window[role] = np.concatenate([more, array], axis=2)
    return evolve(rows, window=window)


def arrays(rows: Rows) -> dict[str, RowArray]:
    return {**rows.full, **rows.window, **rows.state}


def as_bytes(rows: Rows) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays(rows).items()}


def decoded(name: str, spec: CacheSpec, payload: Payload, start: int, stop: int) -> Rows:
    """Rows [start, stop) of `payload`, decoded into views of larger buffers."""
    out = empty_rows(spec, 0, payload.rows, payload.rows + 3).part(start, stop)
    codec(name).decode(spec, payload, out, first=start)
    return out


def as_float(array: RowArray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


@given(st.data(), strategies.specs(), st.integers(0, 9))
def test_native_gives_back_every_bit_of_any_cache(data, spec, count):
    rows = data.draw(strategies.rows(spec, count, wild=True))
    payload = codec("native").encode(spec, rows)
    assert as_bytes(decoded("native", spec, payload, 0, count)) == as_bytes(rows)


@codecs
@given(data=st.data(), spec=strategies.full_specs(), count=st.integers(0, 9))
def test_encoding_a_run_is_encoding_its_two_parts_one_after_the_other(name, data, spec, count):
    rows = data.draw(strategies.rows(spec, count, wild=True))
    cut = data.draw(st.integers(0, count))
    one = codec(name)
    whole = one.encode(spec, rows)
    left, right = one.encode(spec, rows.part(0, cut)), one.encode(spec, rows.part(cut, count))
    assert whole.tensors.keys() == left.tensors.keys() == right.tensors.keys()
    for tensor_name, tensor in whole.tensors.items():
        pieces = left.tensors[tensor_name], right.tensors[tensor_name]
        assert bytes(tensor.data) == b"".join(bytes(piece.data) for piece in pieces)
        assert tensor.shape[1:] == pieces[0].shape[1:] == pieces[1].shape[1:]
        assert tensor.shape[0] == pieces[0].shape[0] + pieces[1].shape[0]


@codecs
@given(data=st.data(), spec=strategies.specs(), count=st.integers(1, 12))
def test_neighbours_joined_are_the_bytes_of_all_their_rows_encoded_at_once(name, data, spec, count):
    rows = unwindowed(data.draw(strategies.rows(spec, count, wild=True)))
    edges = sorted({0, count, *data.draw(st.lists(st.integers(0, count), max_size=4))})
    one = codec(name)
    parts = [one.encode(spec, run(spec, rows, *ends)) for ends in pairwise(edges)]
    joined = one.join(spec, [(part, part.rows) for part in parts])
    whole = one.encode(spec, run(spec, rows, 0, count))
    assert joined == whole
    assert {key: bytes(tensor.data) for key, tensor in joined.tensors.items()} == {
        key: bytes(tensor.data) for key, tensor in whole.tensors.items()
    }


@codecs
@given(data=st.data(), spec=strategies.full_specs(), count=st.integers(2, 9))
def test_of_a_neighbour_that_was_left_early_only_the_first_rows_are_joined(name, data, spec, count):
    rows = data.draw(strategies.rows(spec, count, wild=True))
    left = data.draw(st.integers(1, count - 1))
    one = codec(name)
    parts = [(one.encode(spec, rows.part(0, count)), left)]
    parts.append((one.encode(spec, rows.part(left, count)), count - left))
    joined, whole = one.join(spec, parts), one.encode(spec, rows)
    assert {key: bytes(tensor.data) for key, tensor in joined.tensors.items()} == {
        key: bytes(tensor.data) for key, tensor in whole.tensors.items()
    }


@codecs
def test_payloads_that_do_not_belong_together_are_not_joined(name):
    one = codec(name)
    payload = one.encode(MIXED, filled(MIXED, 4))
    full = one.encode(SMOLLM, filled(SMOLLM, 4))
    for spec, parts in (
        (MIXED, [(payload, 4), (full, 4)]),
        (MIXED, [(payload, 3), (payload, 4)]),
        (MIXED, [(payload, 4), (payload, 3)]),
        (SMOLLM, [(full, 4), (evolve(full, codec="other"), 4)]),
    ):
        with pytest.raises(ValueError, match=r"not|kind|no tensor|end"):
            one.join(spec, parts)


@codecs
@given(data=st.data(), spec=strategies.specs(), count=st.integers(1, 9))
def test_any_part_of_the_rows_decodes_to_the_same_as_all_of_them(name, data, spec, count):
    rows = data.draw(strategies.rows(spec, count, wild=True))
    payload = codec(name).encode(spec, rows)
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    whole = decoded(name, spec, payload, 0, count)
    assert as_bytes(decoded(name, spec, payload, start, stop)) == as_bytes(whole.part(start, stop))


@given(st.data(), strategies.specs(), st.integers(1, 6))
def test_q8_is_off_by_half_a_step_of_the_groups_range_at_most(data, spec, count):
    rows = data.draw(strategies.rows(spec, count))
    restored = decoded("q8", spec, codec("q8").encode(spec, rows), 0, count)
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
    restored = decoded("f16", spec, codec("f16").encode(spec, rows), 0, count)
    for role, array in rows.full.items():
        before, after = (as_float(one, spec.dtype) for one in (array, restored.full[role]))
        allowed = np.maximum(np.abs(before) * 2**-11, 2**-25) if spec.dtype == "float32" else 0
        assert (np.abs(before - after) <= allowed).all()


@given(data=st.data(), spec=strategies.full_specs(), count=st.integers(1, 6))
def test_q4_is_off_by_half_a_step_of_its_group_at_most_in_the_rotated_basis(data, spec, count):
    rows = data.draw(strategies.rows(spec, count + 1)).part(1, count + 1)
    restored = decoded("q4", spec, codec("q4").encode(spec, rows), 0, count)
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
    restored = decoded("q4", spec, codec("q4").encode(spec, rows), 0, 20).full["g0.v"]
    before = rows.full["g0.v"]
    step = np.ptp(before, axis=-1, keepdims=True) / 15
    plain = np.rint((before - before.min(axis=-1, keepdims=True)) / step) * step
    plain += before.min(axis=-1, keepdims=True)
    assert np.square(restored - before).mean() < np.square(plain - before).mean() / 3


@pytest.mark.parametrize(("start", "stop", "window_rows"), [(0, 3, 3), (0, 9, 4), (1, 9, 4)])
def test_q4_keeps_the_first_row_of_a_sequence_and_no_other_as_it_is(start, stop, window_rows):
    rows = filled(MIXED, stop).part(start, stop)
    restored = decoded("q4", MIXED, codec("q4").encode(MIXED, rows), 0, stop - start)
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
    restored = decoded(name, spec, codec(name).encode(spec, rows), 0, count)
    for role, array in rows.full.items():
        odd = ~np.isfinite(as_float(array, spec.dtype)).all(axis=(1, 3))
        before, after = array.transpose(0, 2, 1, 3)[odd], restored.full[role].transpose(0, 2, 1, 3)
        assert before.tobytes() == after[odd].tobytes()


@lossy
@given(data=st.data(), spec=strategies.full_specs(), count=st.integers(1, 6))
def test_finite_rows_stay_finite(name, data, spec, count):
    rows = data.draw(strategies.rows(spec, count, wild=True))
    restored = decoded(name, spec, codec(name).encode(spec, rows), 0, count)
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
        restored = decoded(name, spec, codec(name).encode(spec, rows), 0, 2)
        assert all(np.isfinite(as_float(one, dtype)).all() for one in restored.full.values())


@lossy
def test_the_kept_rows_of_a_part_are_found_that_does_not_begin_at_the_first(name):
    spec = CacheSpec((LayerSpec.full(1, 4),) * 2)
    rows = filled(spec, 6)
    for layer, row, value in ((0, 1, np.inf), (1, 1, -np.inf), (1, 4, np.nan)):
        rows.full["g0.k"][layer, 0, row, 2] = value
    part = decoded(name, spec, codec(name).encode(spec, rows), 3, 6)
    assert part.full["g0.k"][1, 0, 1].tobytes() == rows.full["g0.k"][1, 0, 4].tobytes()


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("q8", [3e38, -3e38, 0, 1]), ("q4", [3e38, 1, 0, 1]), ("f16", [65520, 1 / 3, 0, 1])],
)
def test_a_finite_row_that_the_encoding_cannot_hold_is_kept(name, numbers):
    spec = CacheSpec((LayerSpec.full(1, 4),))
    rows = filled(spec, 2)
    rows.full["g0.k"][0, 0, 1] = numbers
    restored = decoded(name, spec, codec(name).encode(spec, rows), 0, 2)
    assert restored.full["g0.k"][0, 0, 1].tolist() == rows.full["g0.k"][0, 0, 1].tolist()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_f16_loses_nothing_of_rows_that_are_16_bits_already(dtype):
    spec = CacheSpec((LayerSpec.full(2, 8),), dtype)
    rows = filled(spec, 4)
    payload = codec("f16").encode(spec, rows)
    assert payload.nbytes == codec("native").nbytes(spec, 4)
    assert as_bytes(decoded("f16", spec, payload, 0, 4)) == as_bytes(rows)


def test_q8_restores_the_smallest_numbers_to_within_their_own_size():
    spec = CacheSpec((LayerSpec.full(1, 4),))
    rows = filled(spec, 1)
    rows.full["g0.k"][0, 0, 0] = [0, 1e-45, 3e-44, 3.6e-43]
    restored = decoded("q8", spec, codec("q8").encode(spec, rows), 0, 1)
    np.testing.assert_allclose(
        restored.full["g0.k"][0, 0, 0], rows.full["g0.k"][0, 0, 0], rtol=0, atol=2e-43
    )


def test_the_padding_of_a_short_group_does_not_cost_precision():
    spec = CacheSpec((LayerSpec.full(1, 2),))
    rows = filled(spec, 1)
    rows.full["g0.k"][0, 0, 0] = [1000, 1001]
    restored = decoded("q8", spec, codec("q8").encode(spec, rows), 0, 1)
    np.testing.assert_allclose(restored.full["g0.k"][0, 0, 0], [1000, 1001], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "share"), [("f16", 0.5), ("q8", 0.30), ("k8v4", 0.22), ("q4", 0.15)]
)
def test_an_idle_agent_takes_this_share_of_a_native_one_at_most(name, share):
    rows = filled(SMOLLM, 200)
    payload = codec(name).encode(SMOLLM, rows)
    assert payload.nbytes <= share * codec("native").encode(SMOLLM, rows).nbytes


@codecs
@given(data=st.data(), spec=strategies.full_specs(), count=st.integers(0, 9))
def test_the_announced_bytes_are_those_of_finite_rows(name, data, spec, count):
    rows = data.draw(strategies.rows(spec, count + 1)).part(1, count + 1)
    payload = codec(name).encode(spec, rows)
    assert payload.nbytes == codec(name).nbytes(spec, count)
    assert payload.nbytes == sum(len(bytes(one.data)) for one in payload.tensors.values())


@codecs
def test_threads_may_decode_the_parts_of_one_payload(name):
    rows = filled(SMOLLM, 100)
    payload = codec(name).encode(SMOLLM, rows)
    out = empty_rows(SMOLLM, 0, 100, 128)
    threads = [
        Thread(
            target=codec(name).decode,
            args=(SMOLLM, payload, out.part(at, at + 25)),
            kwargs={"first": at},
        )
        for at in range(0, 100, 25)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert as_bytes(out) == as_bytes(decoded(name, SMOLLM, payload, 0, 100))


@codecs
def test_a_payload_shares_no_memory_with_its_rows_and_cannot_be_written(name):
    rows = filled(MIXED, 8)
    payload = codec(name).encode(MIXED, rows)
    before = {tensor_name: bytes(one.data) for tensor_name, one in payload.tensors.items()}
    for array in arrays(rows).values():
        array[...] = 7
    assert {tensor_name: bytes(one.data) for tensor_name, one in payload.tensors.items()} == before
    assert all(one.data.readonly for one in payload.tensors.values())


@codecs
def test_decoding_touches_nothing_beyond_its_rows(name):
    payload = codec(name).encode(SMOLLM, filled(SMOLLM, 10))
    buffer = empty_rows(SMOLLM, 0, 12, 12)
    for array in buffer.full.values():
        array[...] = 7
    codec(name).decode(SMOLLM, payload, buffer.part(1, 11))
    for array in buffer.full.values():
        assert (array[:, :, [0, 11]] == 7).all()
        assert not (array[:, :, 1:11] == 7).all()


@codecs
def test_the_last_rows_of_a_window_are_decoded_into_a_shorter_one(name):
    payload = codec(name).encode(MIXED, filled(MIXED, 8))
    whole = decoded(name, MIXED, payload, 0, 8)
    shorter = {role: np.empty_like(array[:, :, 2:]) for role, array in whole.window.items()}
    out = evolve(empty_rows(MIXED, 0, 8), window=shorter)
    codec(name).decode(MIXED, payload, out)
    for role, array in shorter.items():
        assert array.tobytes() == np.ascontiguousarray(whole.window[role][:, :, 2:]).tobytes()


@codecs
def test_window_and_state_are_not_decoded_at_any_other_place_than_the_end(name):
    payload = codec(name).encode(MIXED, filled(MIXED, 8))
    with pytest.raises(ValueError, match="the payload's end"):
        codec(name).decode(MIXED, payload, empty_rows(MIXED, 0, 4))


@codecs
def test_a_payload_without_state_cannot_fill_state(name):
    payload = codec(name).encode(MIXED, evolve(filled(MIXED, 8), state={}))
    with pytest.raises(ValueError, match=r"no tensor s2\.0"):
        decoded(name, MIXED, payload, 0, 8)


def _without(payload: Payload, name: str) -> Payload:
    return evolve(payload, tensors={k: v for k, v in payload.tensors.items() if k != name})


def _with(payload: Payload, name: str, tensor: Tensor) -> Payload:
    return evolve(payload, tensors={**payload.tensors, name: tensor})


@codecs
def test_a_payload_that_is_not_the_models_is_refused(name):
    one = codec(name)
    payload = one.encode(MIXED, filled(MIXED, 8))
    for wrong in (
        evolve(payload, codec="other"),
        evolve(payload, rows=7),
        evolve(payload, rows=9),
        _with(payload, "g7.k", next(iter(payload.tensors.values()))),
        *(_without(payload, tensor_name) for tensor_name in payload.tensors),
        *(
            _with(payload, tensor_name, changed)
            for tensor_name, tensor in payload.tensors.items()
            for changed in (
                evolve(tensor, dtype="I32"),
                evolve(tensor, shape=(*tensor.shape, 1)),
                evolve(tensor, shape=(tensor.shape[0] + 1, *tensor.shape[1:])),
                evolve(tensor, data=memoryview(bytes(tensor.data) + b"\0")),
            )
        ),
    ):
        with pytest.raises(ValueError, match=r"payload|is|has"):
            one.decode(MIXED, wrong, empty_rows(MIXED, 0, 8))
    one.decode(MIXED, payload, empty_rows(MIXED, 0, 8))


@codecs
def test_rows_that_are_not_the_models_are_refused_both_ways(name):
    one, rows = codec(name), filled(MIXED, 8)
    payload = one.encode(MIXED, rows)
    key = rows.full["g0.k"]
    for wrong in (
        evolve(rows, full={**rows.full, "g0.k": key.astype(np.float64)}),
        evolve(rows, full={**rows.full, "g0.k": key[:, :, :7]}),
        evolve(rows, full={"g0.k": key}),
        evolve(rows, window={"g1.k": rows.window["g1.k"]}),
        evolve(rows, window={r: np.repeat(a, 2, axis=2) for r, a in rows.window.items()}),
        evolve(rows, state={"s2.0": np.zeros((3, 2), np.float32)}),
        evolve(rows, state={"s9.0": rows.state["s2.0"]}),
    ):
        with pytest.raises(ValueError, match=r"is|are|has"):
            one.encode(MIXED, wrong)
        with pytest.raises(ValueError, match=r"is|are|has"):
            one.decode(MIXED, payload, wrong)


@codecs
@pytest.mark.parametrize(("first", "count"), [(-1, 2), (7, 2), (9, 0)])
def test_rows_that_the_payload_does_not_have_are_refused(name, first, count):
    payload = codec(name).encode(SMOLLM, filled(SMOLLM, 8))
    with pytest.raises(ValueError, match="do not exist"):
        codec(name).decode(SMOLLM, payload, empty_rows(SMOLLM, 0, count), first=first)


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
