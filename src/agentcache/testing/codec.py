"""What every codec promises, whatever it loses."""

from itertools import pairwise
from threading import Thread

import numpy as np
import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentcache.domain.spec import CacheSpec
from agentcache.ports.codec import Codec
from agentcache.ports.rows import empty_rows
from agentcache.testing import strategies
from agentcache.testing.row_values import (
    MIXED,
    SMOLLM,
    arrays,
    as_bytes,
    decoded,
    filled,
    replaced,
    run,
    unwindowed,
    without,
)

# The same test runs for every codec's class.
anyone = settings(suppress_health_check=[HealthCheck.differing_executors])


class CodecContract:
    """Subclass it, and set `codec`."""

    codec: Codec

    @anyone
    @given(data=st.data(), spec=strategies.full_specs(), count=st.integers(0, 9))
    def test_encoding_a_run_is_encoding_its_two_parts_one_after_the_other(
        self, data: st.DataObject, spec: CacheSpec, count: int
    ) -> None:
        rows = data.draw(strategies.rows(spec, count, wild=True))
        cut = data.draw(st.integers(0, count))
        one = self.codec
        whole = one.encode(spec, rows)
        left, right = one.encode(spec, rows.part(0, cut)), one.encode(spec, rows.part(cut, count))
        assert whole.tensors.keys() == left.tensors.keys() == right.tensors.keys()
        for tensor_name, tensor in whole.tensors.items():
            pieces = left.tensors[tensor_name], right.tensors[tensor_name]
            assert bytes(tensor.data) == b"".join(bytes(piece.data) for piece in pieces)
            assert tensor.shape[1:] == pieces[0].shape[1:] == pieces[1].shape[1:]
            assert tensor.shape[0] == pieces[0].shape[0] + pieces[1].shape[0]

    @anyone
    @given(data=st.data(), spec=strategies.specs(), count=st.integers(1, 12))
    def test_neighbours_joined_are_the_bytes_of_all_their_rows_encoded_at_once(
        self, data: st.DataObject, spec: CacheSpec, count: int
    ) -> None:
        rows = unwindowed(data.draw(strategies.rows(spec, count, wild=True)))
        edges = sorted({0, count, *data.draw(st.lists(st.integers(0, count), max_size=4))})
        one = self.codec
        parts = [one.encode(spec, run(spec, rows, *ends)) for ends in pairwise(edges)]
        joined = one.join(spec, [(part, part.rows) for part in parts])
        whole = one.encode(spec, run(spec, rows, 0, count))
        assert joined == whole
        assert {key: bytes(tensor.data) for key, tensor in joined.tensors.items()} == {
            key: bytes(tensor.data) for key, tensor in whole.tensors.items()
        }

    @anyone
    @given(data=st.data(), spec=strategies.full_specs(), count=st.integers(2, 9))
    def test_of_a_neighbour_that_was_left_early_only_the_first_rows_are_joined(
        self, data: st.DataObject, spec: CacheSpec, count: int
    ) -> None:
        rows = data.draw(strategies.rows(spec, count, wild=True))
        left = data.draw(st.integers(1, count - 1))
        one = self.codec
        parts = [(one.encode(spec, rows.part(0, count)), left)]
        parts.append((one.encode(spec, rows.part(left, count)), count - left))
        joined, whole = one.join(spec, parts), one.encode(spec, rows)
        assert {key: bytes(tensor.data) for key, tensor in joined.tensors.items()} == {
            key: bytes(tensor.data) for key, tensor in whole.tensors.items()
        }

    @anyone
    @given(data=st.data(), spec=strategies.full_specs(), count=st.integers(2, 9))
    def test_the_first_rows_alone_are_the_bytes_of_these_rows_encoded_alone(
        self, data: st.DataObject, spec: CacheSpec, count: int
    ) -> None:
        rows = data.draw(strategies.rows(spec, count, wild=True))
        left = data.draw(st.integers(1, count - 1))
        one = self.codec
        cut = one.join(spec, [(one.encode(spec, rows), left)])
        alone = one.encode(spec, rows.part(0, left))
        assert (cut.rows, cut.nbytes) == (left, alone.nbytes)
        assert {key: bytes(tensor.data) for key, tensor in cut.tensors.items()} == {
            key: bytes(tensor.data) for key, tensor in alone.tensors.items()
        }

    def test_payloads_that_do_not_belong_together_are_not_joined(self) -> None:
        one = self.codec
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

    @anyone
    @given(data=st.data(), spec=strategies.specs(), count=st.integers(1, 9))
    def test_any_part_of_the_rows_decodes_to_the_same_as_all_of_them(
        self, data: st.DataObject, spec: CacheSpec, count: int
    ) -> None:
        rows = data.draw(strategies.rows(spec, count, wild=True))
        payload = self.codec.encode(spec, rows)
        start = data.draw(st.integers(0, count))
        stop = data.draw(st.integers(start, count))
        whole = decoded(self.codec, spec, payload, 0, count)
        assert as_bytes(decoded(self.codec, spec, payload, start, stop)) == as_bytes(
            whole.part(start, stop)
        )

    @anyone
    @given(data=st.data(), spec=strategies.full_specs(), count=st.integers(0, 9))
    def test_the_announced_bytes_are_those_of_finite_rows(
        self, data: st.DataObject, spec: CacheSpec, count: int
    ) -> None:
        rows = data.draw(strategies.rows(spec, count + 1)).part(1, count + 1)
        payload = self.codec.encode(spec, rows)
        assert payload.nbytes == self.codec.nbytes(spec, count)
        assert payload.nbytes == sum(len(bytes(one.data)) for one in payload.tensors.values())

    def test_threads_may_decode_the_parts_of_one_payload(self) -> None:
        rows = filled(SMOLLM, 100)
        payload = self.codec.encode(SMOLLM, rows)
        out = empty_rows(SMOLLM, 0, 100, 128)
        threads = [
            Thread(
                target=self.codec.decode,
                args=(SMOLLM, payload, out.part(at, at + 25)),
                kwargs={"first": at},
            )
            for at in range(0, 100, 25)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert as_bytes(out) == as_bytes(decoded(self.codec, SMOLLM, payload, 0, 100))

    def test_a_payload_shares_no_memory_with_its_rows_and_cannot_be_written(self) -> None:
        rows = filled(MIXED, 8)
        payload = self.codec.encode(MIXED, rows)
        before = {tensor_name: bytes(one.data) for tensor_name, one in payload.tensors.items()}
        for array in arrays(rows).values():
            array[...] = 7
        assert {
            tensor_name: bytes(one.data) for tensor_name, one in payload.tensors.items()
        } == before
        assert all(one.data.readonly for one in payload.tensors.values())

    def test_decoding_touches_nothing_beyond_its_rows(self) -> None:
        payload = self.codec.encode(SMOLLM, filled(SMOLLM, 10))
        buffer = empty_rows(SMOLLM, 0, 12, 12)
        for array in buffer.full.values():
            array[...] = 7
        self.codec.decode(SMOLLM, payload, buffer.part(1, 11))
        for array in buffer.full.values():
            assert (array[:, :, [0, 11]] == 7).all()
            assert not (array[:, :, 1:11] == 7).all()

    def test_the_last_rows_of_a_window_are_decoded_into_a_shorter_one(self) -> None:
        payload = self.codec.encode(MIXED, filled(MIXED, 8))
        whole = decoded(self.codec, MIXED, payload, 0, 8)
        shorter = {role: np.empty_like(array[:, :, 2:]) for role, array in whole.window.items()}
        out = evolve(empty_rows(MIXED, 0, 8), window=shorter)
        self.codec.decode(MIXED, payload, out)
        for role, array in shorter.items():
            assert array.tobytes() == np.ascontiguousarray(whole.window[role][:, :, 2:]).tobytes()

    def test_window_and_state_are_not_decoded_at_any_other_place_than_the_end(self) -> None:
        payload = self.codec.encode(MIXED, filled(MIXED, 8))
        with pytest.raises(ValueError, match="the payload's end"):
            self.codec.decode(MIXED, payload, empty_rows(MIXED, 0, 4))

    def test_a_payload_without_state_cannot_fill_state(self) -> None:
        payload = self.codec.encode(MIXED, evolve(filled(MIXED, 8), state={}))
        with pytest.raises(ValueError, match=r"no tensor s2\.0"):
            decoded(self.codec, MIXED, payload, 0, 8)

    def test_a_payload_that_is_not_the_models_is_refused(self) -> None:
        one = self.codec
        payload = one.encode(MIXED, filled(MIXED, 8))
        for wrong in (
            evolve(payload, codec="other"),
            evolve(payload, rows=7),
            evolve(payload, rows=9),
            replaced(payload, "g7.k", next(iter(payload.tensors.values()))),
            *(without(payload, tensor_name) for tensor_name in payload.tensors),
            *(
                replaced(payload, tensor_name, changed)
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

    def test_rows_that_are_not_the_models_are_refused_both_ways(self) -> None:
        one, rows = self.codec, filled(MIXED, 8)
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

    @pytest.mark.parametrize(("first", "count"), [(-1, 2), (7, 2), (9, 0)])
    def test_rows_that_the_payload_does_not_have_are_refused(self, first: int, count: int) -> None:
        payload = self.codec.encode(SMOLLM, filled(SMOLLM, 8))
        with pytest.raises(ValueError, match="do not exist"):
            self.codec.decode(SMOLLM, payload, empty_rows(SMOLLM, 0, count), first=first)
