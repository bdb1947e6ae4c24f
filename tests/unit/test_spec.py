"""What follows from a cache's shape: bytes, groups, places to continue."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcache.domain.spec import CacheSpec, LayerKind, LayerSpec, StateArray
from tests.unit.domain_strategies import FULL, SPECS, STATE, WINDOW

POSITIONS = st.integers(-1, 20)


def test_bytes_of_a_row_count_keys_and_values_of_full_layers_alone() -> None:
    spec = CacheSpec((LayerSpec.full(2, 8, 4), LayerSpec.full(1, 6), *WINDOW.layers[1:]), "float16")
    assert spec.row_bytes == (2 * (8 + 4) + 1 * (6 + 6)) * 2
    assert spec.window_row_bytes == 2 * (4 + 4) * 2


def test_bytes_of_a_state_are_those_of_its_arrays_whatever_the_rows_dtype() -> None:
    arrays = (StateArray((2, 3), "float32"), StateArray((), "bfloat16"))
    spec = CacheSpec((LayerSpec(LayerKind.STATE, state=arrays),), "float16")
    assert spec.state_bytes == 6 * 4 + 2
    assert (spec.row_bytes, spec.window_row_bytes) == (0, 0)


def test_value_dims_may_be_zero() -> None:
    assert LayerSpec.full(3, 5, 0).row_items == 15


def test_layers_of_one_shape_are_stacked_in_order_of_appearance() -> None:
    one, other = LayerSpec.full(1, 2), LayerSpec.full(1, 3)
    state = STATE.layers[1]
    groups = CacheSpec((one, other, state, one)).groups
    assert [(group.name, group.layers, group.key_dim) for group in groups] == [
        ("g0", (0, 3), 2),
        ("g1", (1,), 3),
    ]


def test_windows_of_different_size_are_different_groups() -> None:
    layers = [LayerSpec(LayerKind.WINDOW, 1, 2, 2, window=size) for size in (4, 8, 4)]
    assert [group.layers for group in CacheSpec(tuple(layers)).groups] == [(0, 2), (1,)]


def test_a_group_names_its_tensors_with_their_dims() -> None:
    group = CacheSpec((LayerSpec.full(1, 8, 4),)).groups[0]
    assert group.roles() == (("g0.k", 8), ("g0.v", 4))


def test_only_full_layers_let_a_sequence_continue_anywhere() -> None:
    assert {name: spec.interior_restorable for name, spec in SPECS.items()} == {
        "full": True,
        "window": False,
        "state": False,
    }
    assert [name for name, spec in SPECS.items() if spec.has_windows] == ["window"]


@given(POSITIONS, st.lists(st.integers(0, 20)))
def test_full_layers_restore_up_to_the_limit(limit: int, ends: list[int]) -> None:
    assert FULL.restore_point(limit, ends) == max(limit, 0)


@given(st.sampled_from([WINDOW, STATE]), POSITIONS, st.lists(st.integers(0, 20)))
def test_other_layers_restore_at_the_last_end_within_the_limit(
    spec: CacheSpec, limit: int, ends: list[int]
) -> None:
    found = spec.restore_point(limit, ends)
    assert found == 0 or found in ends
    assert found <= max(limit, 0)
    assert not any(found < end <= limit for end in ends)


def test_an_unknown_dtype_and_a_window_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="float8"):
        CacheSpec((), "float8")
    with pytest.raises(ValueError, match="window"):
        LayerSpec(LayerKind.WINDOW, window=0)


def test_a_live_window_takes_its_rows_and_some_slack_however_long_the_sequence() -> None:
    spec = CacheSpec((LayerSpec(LayerKind.WINDOW, 1, 4, 4, 100),))
    assert spec.live_bytes(50) == 50 * spec.window_row_bytes
    assert spec.live_bytes(200) == spec.live_bytes(8_000) == 200 * spec.window_row_bytes


def test_a_live_state_takes_the_same_whatever_there_is_room_for() -> None:
    spec = CacheSpec(
        (LayerSpec.full(1, 4), LayerSpec(LayerKind.STATE, state=(StateArray((7,), "float32"),)))
    )
    assert spec.live_bytes(0) == 28
    assert spec.live_bytes(10) == 28 + 10 * spec.row_bytes
