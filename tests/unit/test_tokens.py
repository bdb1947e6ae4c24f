"""Token arrays: the same bytes on every machine, and how far two of them agree."""

import sys
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcache.domain.tokens import common_prefix, from_bytes, to_bytes, tokens

ids = st.lists(st.integers(0, 2**32 - 1))
few = st.lists(st.integers(0, 2), max_size=8)


@given(ids)
def test_bytes_give_the_tokens_back(some: list[int]) -> None:
    assert from_bytes(to_bytes(tokens(some))) == tokens(some)


def test_bytes_are_little_endian() -> None:
    assert to_bytes(tokens([1, 258])) == b"\x01\0\0\0\x02\x01\0\0"


def test_a_big_endian_machine_writes_and_reads_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    swapped = array("I", [1, 258])
    swapped.byteswap()  # what a big-endian machine has in memory
    native = to_bytes(tokens([1, 258]))
    monkeypatch.setattr(sys, "byteorder", "big")
    assert to_bytes(swapped) == native
    assert from_bytes(native) == swapped


def test_swapping_leaves_the_original_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "byteorder", "big")
    some = tokens([1])
    to_bytes(some)
    assert some == tokens([1])


@pytest.mark.parametrize("wrong", [-1, 2**32])
def test_ids_out_of_range_are_refused(wrong: int) -> None:
    with pytest.raises(OverflowError):
        tokens([wrong])


def test_half_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        from_bytes(b"\0\0\0")


@given(few, st.integers(0, 9), few, st.integers(0, 9))
def test_the_common_prefix_is_as_long_as_a_plain_loop_finds(
    a: list[int], a_start: int, b: list[int], b_start: int
) -> None:
    expected = 0
    for x, y in zip(a[a_start:], b[b_start:], strict=False):
        if x != y:
            break
        expected += 1
    assert common_prefix(tokens(a), a_start, tokens(b), b_start) == expected


@pytest.mark.parametrize("length", [511, 512, 513, 1024, 2000])
@pytest.mark.parametrize("back", [0, 1, 600])
def test_a_difference_is_found_on_either_side_of_a_compared_piece(length: int, back: int) -> None:
    one, other = tokens(range(length)), tokens(range(length))
    at = max(0, length - 1 - back)
    other[at] = 2**31
    assert common_prefix(one, 0, other, 0) == at
    assert common_prefix(one, 0, one, 0) == length
