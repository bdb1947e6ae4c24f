"""Which neighbours on a path of segments to merge, so that chains stay short and writes few.

Where every row is a place to continue, small neighbours are merged, SMALL_AT_ONCE of them or more,
none of which is longer than all others together: a row that is written again lies in a segment at
least twice as long as before. MOST_SMALL in a row are merged whatever their sizes.

Where the ends of segments are the places to continue, each with its checkpoint, the older ones are
thinned out in the same way, CHECKPOINTS_AT_ONCE, into segments of at least 1.5 times the length.
What is left is a ladder: few checkpoints, the sparser the older they are.
"""

from collections.abc import Callable, Iterator, Sequence

from attrs import frozen

LARGE_ROWS = 512
MOST_ROWS = 2048
MOST_BYTES = 256 << 20
SMALL_AT_ONCE = 8
MOST_SMALL = 16
CHECKPOINTS_AT_ONCE = 3
NEWEST_KEPT = 2


@frozen
class Link:
    """One segment of a path: the rows that the path uses of it, and the bytes that it takes.

    It is `movable` if it may be merged at all, and `joins` the next one if its end need not stay.
    """

    rows: int
    nbytes: int = 0
    movable: bool = True
    joins: bool = True


def small_run(links: Sequence[Link]) -> range | None:
    """The links to merge next on a path where every row is a place to continue."""
    for group in _groups(links, lambda link: link.movable and link.rows < LARGE_ROWS):
        run = _balanced(links, group, SMALL_AT_ONCE, 2, _of_few_rows) or _overlong(links, group)
        if run is not None:
            return run
    return None


def checkpoint_run(links: Sequence[Link]) -> range | None:
    """The links to merge next on a path where only the ends of links are places to continue.

    The first end stays, which others may share, and so do the newest ones.
    """
    older = range(1, len(links) - NEWEST_KEPT)
    for group in _groups(links[: older.stop], lambda link: link.movable):
        inner = group[1:] if group.start == 0 else group
        run = _balanced(links, inner, CHECKPOINTS_AT_ONCE, 3, _of_few_bytes)
        if run is not None:
            return run
    return None


def _of_few_rows(run: Sequence[Link]) -> bool:
    return sum(link.rows for link in run) <= MOST_ROWS


def _of_few_bytes(run: Sequence[Link]) -> bool:
    return sum(link.nbytes for link in run) <= MOST_BYTES


def _balanced(
    links: Sequence[Link],
    group: range,
    at_once: int,
    parts: int,
    fits: Callable[[Sequence[Link]], bool],
) -> range | None:
    """The longest end of `group` of which no link is more than 1 - 1 / `parts`."""
    best, rows, longest = None, 0, 0
    for index in reversed(group):
        rows += links[index].rows
        longest = max(longest, links[index].rows)
        run = range(index, group.stop)
        if not fits(links[index : group.stop]):
            break
        if len(run) >= at_once and parts * longest <= (parts - 1) * rows:
            best = run
    return best


def _overlong(links: Sequence[Link], group: range) -> range | None:
    """As many of the last links of `group` as fit together, if it has too many."""
    start = group.stop - 1
    while start > group.start and _of_few_rows(links[start - 1 : group.stop]):
        start -= 1
    run = range(start, group.stop)
    return run if len(group) >= MOST_SMALL and len(run) > 1 else None


def _groups(links: Sequence[Link], fits: Callable[[Link], bool]) -> Iterator[range]:
    """The runs of links that fit, and may be joined with each other, the last run first."""
    stop = len(links)
    while stop > 0:
        start = stop - 1
        if fits(links[start]):
            while start > 0 and fits(links[start - 1]) and links[start - 1].joins:
                start -= 1
            yield range(start, stop)
        stop = start
