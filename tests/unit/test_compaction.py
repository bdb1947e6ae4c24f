"""Which neighbours are merged: chains stay short, rows are seldom written again."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcache.domain.compaction import (
    CHECKPOINTS_AT_ONCE,
    LARGE_ROWS,
    MOST_BYTES,
    MOST_ROWS,
    MOST_SMALL,
    NEWEST_KEPT,
    SMALL_AT_ONCE,
    Link,
    checkpoint_run,
    small_run,
)

sizes = st.integers(1, 60) | st.integers(1, 2 * LARGE_ROWS)
choosers = pytest.mark.parametrize("choose", [small_run, checkpoint_run])


def merged(links: list[Link], run: range) -> list[Link]:
    one = Link(sum(links[i].rows for i in run), max(links[i].nbytes for i in run))
    return [*links[: run.start], one, *links[run.stop :]]


def grown(turns: list[int], choose=small_run) -> tuple[list[Link], int]:
    """The chain after so many turns, each merged at once; and how many rows were written again."""
    links: list[Link] = []
    again = 0
    for rows in turns:
        links.append(Link(rows))
        while (run := choose(links)) is not None:
            links = merged(links, run)
            again += links[run.start].rows
    return links, again


@given(st.lists(sizes, max_size=300))
def test_a_chain_never_has_many_small_segments_in_a_row(turns):
    links, _ = grown(turns)
    small = [link.rows < LARGE_ROWS for link in links]
    runs = "".join("s" if one else " " for one in small).split()
    assert max(map(len, runs), default=0) < MOST_SMALL


@given(st.lists(sizes, min_size=1, max_size=300))
def test_a_chain_is_as_long_as_its_rows_are_many_whatever_the_turns(turns):
    links, _ = grown(turns)
    assert len(links) <= MOST_SMALL + 4 * sum(turns) / LARGE_ROWS
    assert sum(link.rows for link in links) == sum(turns)


@given(st.lists(sizes, min_size=1, max_size=300))
def test_a_row_is_written_again_a_few_times_at_most(turns):
    _, again = grown(turns)
    assert again <= math.log2(LARGE_ROWS) * sum(turns)


@pytest.mark.parametrize("rows", [1, 10, 40, 200])
def test_turns_of_one_size_are_written_again_four_times_at_most(rows):
    turns = [rows] * 1000
    _, again = grown(turns)
    assert again <= 4.1 * sum(turns)


@given(st.lists(sizes, min_size=1, max_size=300))
def test_older_checkpoints_are_ever_sparser(turns):
    links, again = grown(turns, checkpoint_run)
    assert len(links) <= 1 + NEWEST_KEPT + 3 * CHECKPOINTS_AT_ONCE * math.log2(2 + sum(turns))
    assert again <= math.log(sum(turns) + 1, 1.5) * sum(turns)


@given(st.lists(sizes, min_size=4, max_size=100))
def test_the_first_and_the_newest_checkpoints_are_never_merged(turns):
    links = [Link(rows) for rows in turns]
    run = checkpoint_run(links)
    assert run is None or (run.start >= 1 and run.stop <= len(links) - NEWEST_KEPT)


@choosers
@given(links=st.lists(st.builds(Link, sizes, movable=st.booleans(), joins=st.booleans())))
def test_only_what_may_be_moved_and_joined_is_merged(choose, links):
    run = choose(links)
    if run is not None:
        assert len(run) > 1
        assert all(links[i].movable for i in run)
        assert all(links[i].joins for i in run[:-1])


@given(st.lists(st.builds(Link, sizes)))
def test_what_is_merged_stays_within_the_rows_of_a_segment(links):
    run = small_run(links)
    if run is not None:
        assert sum(links[i].rows for i in run) <= MOST_ROWS


def test_checkpoints_that_are_too_large_together_are_not_merged():
    few, many = [Link(10, MOST_BYTES // 4)] * 8, [Link(10, MOST_BYTES // 2)] * 8
    assert checkpoint_run(few) is not None
    assert checkpoint_run(many) is None


def test_a_short_chain_is_left_alone():
    assert small_run([Link(10)] * (SMALL_AT_ONCE - 1)) is None
    assert checkpoint_run([Link(10)] * (CHECKPOINTS_AT_ONCE + NEWEST_KEPT)) is None
    assert small_run([]) is None
    assert checkpoint_run([]) is None
