"""Segments and roots: named by everything that they depend on, and by nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcache.domain.segment import KEY_BYTES, Segment, root_key, segment_key
from agentcache.domain.tokens import tokens

ROOT = b"r" * KEY_BYTES
PARENT = b"p" * KEY_BYTES
ids = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5)
rows = st.integers(1, 2**40)
parts = st.tuples(st.binary(max_size=3), st.text(max_size=3), st.text(max_size=3))


def test_a_segment_ends_after_its_last_token() -> None:
    segment = Segment.following(ROOT, PARENT, 5, tokens([1, 2, 3]), 7)
    assert (segment.start, segment.stop, len(segment), segment.nbytes) == (5, 8, 3, 7)


def test_a_segment_holds_at_least_one_token() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Segment.following(ROOT, None, 0, tokens(), 0)


@pytest.mark.parametrize(("parent", "start"), [(None, 3), (PARENT, 0)])
def test_only_what_follows_the_root_starts_at_0(parent: bytes | None, start: int) -> None:
    with pytest.raises(ValueError, match=f"at row {start}"):
        Segment.following(ROOT, parent, start, tokens([1]), 0)


def test_equal_content_has_an_equal_key_whoever_made_it() -> None:
    one = Segment.following(ROOT, PARENT, 5, tokens([1, 2]), 7)
    other = Segment.following(ROOT, PARENT, 5, tokens([1, 2]), 7)
    assert one == other
    assert len(one.key) == KEY_BYTES


@given(rows, ids, rows, ids)
def test_different_rows_or_tokens_have_different_keys(
    row: int, some: list[int], other_row: int, other: list[int]
) -> None:
    same = (row, some) == (other_row, other)
    one = segment_key(ROOT, PARENT, row, tokens(some))
    assert (one == segment_key(ROOT, PARENT, other_row, tokens(other))) == same


def test_a_key_depends_on_the_parent_and_without_one_on_the_root() -> None:
    some = tokens([1])
    assert segment_key(ROOT, PARENT, 1, some) != segment_key(ROOT, b"q" * KEY_BYTES, 1, some)
    assert segment_key(ROOT, None, 0, some) != segment_key(b"s" * KEY_BYTES, None, 0, some)


def test_a_key_is_the_same_in_every_process() -> None:
    key = segment_key(ROOT, PARENT, 258, tokens([1, 2**32 - 1]))
    assert key.hex() == ("8a836731c7ae29a69384c496d701d43666e6d420b81f8b48ff68560de071ba4f")


@given(parts, parts)
def test_no_two_models_codecs_or_tenants_have_one_root(
    one: tuple[bytes, str, str], other: tuple[bytes, str, str]
) -> None:
    roots = [
        root_key(digest, "float32", 1, codec, tenant) for digest, codec, tenant in (one, other)
    ]
    assert (roots[0] == roots[1]) == (one == other)


def test_dtype_epoch_and_salt_change_the_root() -> None:
    roots = {
        root_key(b"model", "float32", 1, "q8", "t"),
        root_key(b"model", "float16", 1, "q8", "t"),
        root_key(b"model", "float32", 2, "q8", "t"),
        root_key(b"model", "float32", 1, "q8", "t", b"salt"),
        root_key(b"model", "float32", 1, "q8", "t", b"other"),
    }
    assert len(roots) == 5
    assert {len(root) for root in roots} == {KEY_BYTES}
