"""Siblings: whatever a prompt agrees with enough is found, without looking at all of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcache.domain.lineage import Lineage
from agentcache.domain.request import Tier
from agentcache.domain.segment import Segment
from agentcache.domain.siblings import Siblings
from agentcache.domain.spec import CacheSpec
from agentcache.domain.tokens import common_prefix, tokens
from tests.unit.domain_strategies import FULL, STATE, WINDOW

ROOT = b"r" * 32
LEAST = 4
ids = st.lists(st.integers(1, 2), min_size=1, max_size=9)


def _segment(said: list[int], start: int = 0, parent: bytes | None = None) -> Segment:
    return Segment.following(ROOT, parent, start, tokens(said), 1)


@given(st.lists(ids, max_size=30, unique_by=tuple), ids)
def test_those_that_agree_enough_are_found(said: list[list[int]], prompt: list[int]) -> None:
    """Enough: with LEAST tokens, or as a whole; or with all of the prompt, then one of them."""
    siblings = Siblings(LEAST)
    segments = [_segment(one) for one in said]
    for segment in segments:
        siblings.add(segment)
    found = siblings.agreeing(tokens(prompt), 0).keys()
    agreed = {one.key: common_prefix(one.ids, 0, tokens(prompt), 0) for one in segments}
    enough = {
        one.key for one in segments if agreed[one.key] >= LEAST or agreed[one.key] == len(one.ids)
    }
    rest = {key for key, count in agreed.items() if count == len(prompt)} - enough
    assert enough <= found
    assert found <= enough | rest
    assert bool(found & rest) <= bool(rest)
    if rest and not enough:
        assert len(found & rest) == 1


@given(st.lists(ids, max_size=20, unique_by=tuple), st.data())
def test_those_that_were_removed_are_not_found(said: list[list[int]], data: st.DataObject) -> None:
    siblings, segments = Siblings(LEAST), [_segment(one) for one in said]
    for segment in segments:
        siblings.add(segment)
    gone = data.draw(st.sets(st.sampled_from(segments))) if segments else set()
    for segment in gone:
        siblings.remove(segment)
    assert set(siblings) == {one.key for one in segments} - {one.key for one in gone}
    assert bool(siblings) == (len(gone) < len(segments))
    for segment in segments:
        assert (segment.key in siblings.agreeing(segment.ids, 0)) == (segment not in gone)


def test_one_of_which_others_part_sooner_is_found_by_its_first_token() -> None:
    siblings, segment = Siblings(LEAST), _segment([1, 2, 3, 4, 5])
    siblings.add(segment)
    prompt = tokens([1, 2, 9, 9, 9])
    assert not siblings.agreeing(prompt, 0)
    siblings.parts_early(segment, True)
    assert list(siblings.agreeing(prompt, 0)) == [segment.key]
    siblings.parts_early(segment, False)
    assert not siblings.agreeing(prompt, 0)


@given(
    st.sampled_from([FULL, WINDOW, STATE]),
    st.integers(1, 5),
    st.lists(st.tuples(ids, st.integers(0, 30), st.integers(1, 9)), max_size=25),
    st.lists(st.integers(1, 2), min_size=1, max_size=25),
)
def test_nothing_is_missed_that_a_look_at_all_of_them_would_find(
    spec: CacheSpec, least: int, grown: list[tuple[list[int], int, int]], prompt: list[int]
) -> None:
    lineage, segments = Lineage(spec, least_shared=least), [_segment([1])]
    lineage.add(segments[0], Tier.WARM)
    for said, after, row in grown:
        parent = segments[after % len(segments)]
        at = parent.stop if spec.has_windows else min(parent.start + row, parent.stop)
        segments.append(_segment(said, at, parent.key))
        lineage.add(segments[-1], Tier.WARM)
    found = lineage.match(ROOT, tokens(prompt))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Siblings, "agreeing", lambda self, _ids, _row: dict.fromkeys(self))
        all_looked_at = lineage.match(ROOT, tokens(prompt))
    assert (found.restore, found.length) == (all_looked_at.restore, all_looked_at.length)


def test_a_match_looks_at_few_of_many_that_begin_alike() -> None:
    lineage = Lineage(FULL, least_shared=LEAST)
    for number in range(500):
        lineage.add(_segment([1, 2, 3, number + 10, 7, 7]), Tier.WARM)
    (siblings,) = lineage._roots[ROOT].values()
    prompt = tokens([1, 2, 3, 260, 7, 7, 8])
    assert len(siblings.agreeing(prompt, 0)) == 1
    assert lineage.match(ROOT, prompt).length == 6
