"""The reader threads: rows from RAM or from disk, wherever they belong."""

from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest
from attrs import evolve

from agentcache.adapters.codecs import NativeCodec
from agentcache.adapters.memory.hash_model import hash_spec
from agentcache.domain.errors import SegmentCorrupt, SegmentMissing, SegmentUnusable
from agentcache.domain.path import Step
from agentcache.domain.segment import Segment
from agentcache.domain.spec import CacheSpec
from agentcache.domain.tokens import tokens
from agentcache.fetcher import DECODE_ROWS, Fetched, Fetcher
from agentcache.ports.payload import Payload
from agentcache.ports.rows import Rows, empty_rows
from tests.frail import Disk
from tests.world import PATIENCE

ROOT = bytes(range(32))
CODEC = NativeCodec()


def filled(spec: CacheSpec, stop: int) -> Rows:
    """Rows [0, stop), every number of which differs; windows with a row for each."""
    rows = empty_rows(spec, 0, stop)
    window = {
        role: np.empty((*a.shape[:2], stop, a.shape[3]), a.dtype) for role, a in rows.window.items()
    }
    rows = evolve(rows, window=window)
    for number, array in enumerate((*rows.full.values(), *window.values(), *rows.state.values())):
        array[...] = np.arange(array.size).reshape(array.shape) + 100_000 * number
    return rows


def part(spec: CacheSpec, rows: Rows, start: int, stop: int) -> Rows:
    """The rows [start, stop) as an engine that stands at `stop` gives them out."""
    window = {}
    for group in spec.groups:
        for role, _ in group.roles():
            if role in rows.window:
                first = max(start, stop - (group.window or 0))
                window[role] = rows.window[role][:, :, first:stop]
    full = {role: array[:, :, start:stop] for role, array in rows.full.items()}
    return Rows(start, stop, full, window, {k: v + stop for k, v in rows.state.items()})


class Path:
    """A chain of segments that end at `stops`, in a store."""

    def __init__(self, spec: CacheSpec, *stops: int) -> None:
        self.spec, self.rows = spec, filled(spec, stops[-1])
        self.disk, self.payloads = Disk(), {}
        self.segments: list[Segment] = []
        for start, stop in zip((0, *stops), stops, strict=False):
            payload = CODEC.encode(spec, part(spec, self.rows, start, stop))
            parent = self.segments[-1].key if self.segments else None
            ids = tokens(range(start, stop))
            one = Segment.following(ROOT, parent, start, ids, payload.nbytes)
            self.segments.append(one)
            self.payloads[one.key] = payload
            self.disk.put(one, payload)

    def steps(self, restore: int) -> tuple[Step, ...]:
        needed = [one for one in self.segments if one.start < restore]
        return tuple(Step(one, min(one.stop, restore)) for one in needed)

    def fetched(self, restore: int, warm: tuple[int, ...] = ()) -> tuple[Rows, Fetched]:
        """The rows [0, restore), and what came of fetching them with some segments in RAM."""
        out = empty_rows(self.spec, 0, restore, capacity=restore + 7)
        return out, self.fetch(out, restore, warm)

    def fetch(self, out: Rows, restore: int, warm: tuple[int, ...] = ()) -> Fetched:
        fetcher, told = Fetcher(self.spec, self.disk), Future[Fetched]()
        held = {self.segments[n].key: self.payloads[self.segments[n].key] for n in warm}
        try:
            fetcher.fetch(CODEC, self.steps(restore), held, out, told.set_result)
            return told.result(PATIENCE)
        finally:
            fetcher.close()


def assert_same(found: Rows, expected: Rows) -> None:
    for held, wanted in (
        (found.full, expected.full),
        (found.window, expected.window),
        (found.state, expected.state),
    ):
        assert held.keys() == wanted.keys()
        for name, array in held.items():
            np.testing.assert_array_equal(array, wanted[name])


@pytest.fixture
def path() -> Iterator[Path]:
    return Path(hash_spec(), 10, 25, 30)


def test_rows_are_restored_into_place(path: Path) -> None:
    rows, found = path.fetched(30)
    assert_same(rows, part(path.spec, path.rows, 0, 30))
    assert [segment for segment, _ in found.read] == path.segments


def test_the_beginning_of_a_segment_is_enough(path: Path) -> None:
    rows, found = path.fetched(17)
    assert_same(rows, part(path.spec, path.rows, 0, 17))
    assert [segment for segment, _ in found.read] == path.segments[:2]


def test_what_is_in_ram_is_not_read(path: Path) -> None:
    rows, found = path.fetched(30, warm=(0, 2))
    assert_same(rows, part(path.spec, path.rows, 0, 30))
    assert [segment for segment, _ in found.read] == path.segments[1:2]


def test_long_segments_are_decoded_in_parts() -> None:
    path = Path(hash_spec(), 2 * DECODE_ROWS + 100, 3 * DECODE_ROWS)
    rows, found = path.fetched(3 * DECODE_ROWS - 1)
    assert_same(rows, part(path.spec, path.rows, 0, 3 * DECODE_ROWS - 1))
    assert not found.failed


@pytest.mark.parametrize("stops", [(40,), (10, 25, 30), (30, 32, 33, 34), (DECODE_ROWS + 5, 520)])
def test_a_window_is_restored_from_as_many_segments_as_it_spans(stops: tuple[int, ...]) -> None:
    path = Path(hash_spec(window=12), *stops)
    rows, found = path.fetched(stops[-1])
    assert not found.failed
    assert_same(rows, part(path.spec, path.rows, 0, stops[-1]))


def test_the_state_is_that_of_the_last_segment() -> None:
    path = Path(hash_spec(window=4, state=True), 10, 25, 30)
    for restore in (10, 25, 30):
        rows, found = path.fetched(restore)
        assert not found.failed
        assert_same(rows, part(path.spec, path.rows, 0, restore))


def test_every_segment_is_tried_whatever_comes_of_the_others(path: Path) -> None:
    path.disk.segments.damage(path.segments[0].key)
    path.disk.segments.delete(path.segments[2].key)
    found = path.fetched(30)[1]
    problems = {segment.key: type(error) for segment, error in found.failed}
    assert problems == {
        path.segments[0].key: SegmentCorrupt,
        path.segments[2].key: SegmentMissing,
    }
    assert [segment for segment, _ in found.read] == path.segments[1:2]


def test_a_segment_that_cannot_be_decoded_is_told_once() -> None:
    path = Path(hash_spec(), 3 * DECODE_ROWS)
    (one,) = path.segments
    path.payloads[one.key] = evolve(path.payloads[one.key], codec="another")
    ((failed, error),) = path.fetched(3 * DECODE_ROWS, warm=(0,))[1].failed
    assert failed == one
    assert "another" in str(error)


@pytest.mark.parametrize("problem", [MemoryError(), OSError(5, "no"), SegmentUnusable(b"", "no")])
def test_whatever_a_reader_raises_is_told(path: Path, problem: Exception) -> None:
    path.disk.fail("read", problem)
    found = path.fetched(30)[1]
    assert [error for _, error in found.failed] == [problem]


def test_rows_that_do_not_fit_are_told_too(path: Path) -> None:
    found = path.fetch(empty_rows(path.spec, 0, 12), 30)
    assert [segment for segment, _ in found.failed] == path.segments[1:]


def test_closing_finishes_what_is_under_way(path: Path) -> None:
    fetcher, told = Fetcher(path.spec, path.disk), Future[Fetched]()
    out = empty_rows(path.spec, 0, 30)
    with path.disk.reads:
        fetcher.fetch(CODEC, path.steps(30), dict[bytes, Payload](), out, told.set_result)
    fetcher.close()
    assert told.done()
    assert_same(out, part(path.spec, path.rows, 0, 30))
