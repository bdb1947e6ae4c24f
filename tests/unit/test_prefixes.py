"""Rows by token ids, without an engine: any cache shape, several threads, stores that fail."""

import threading
from collections.abc import Iterator

import pytest

from agentcache.adapters.codecs import codec
from agentcache.adapters.memory.engine import MemoryEngine
from agentcache.adapters.memory.hash_model import hash_spec
from agentcache.adapters.memory.segment_store import MemorySegmentStore
from agentcache.adapters.memory.session_store import MemorySessionStore
from agentcache.adapters.memory.telemetry import NullTelemetry
from agentcache.domain.compaction import MOST_SMALL
from agentcache.domain.errors import SegmentCorrupt
from agentcache.domain.segment import Segment
from agentcache.domain.spec import CacheSpec
from agentcache.domain.tokens import tokens
from agentcache.ports.payload import Payload
from agentcache.ports.rows import Rows
from agentcache.prefixes import Origin, PrefixStore, Stores
from agentcache.testing.driving import Driver, copied, same_bits

PROMPT = [7 * n % 250 + 3 for n in range(40)]
SPECS = {"full": hash_spec(), "window and state": hash_spec(2, 4, True)}


class Frail(MemorySegmentStore):
    """A segment store that fails on demand."""

    problem: Exception | None = None

    def put(self, segment: Segment, payload: Payload) -> int:
        if self.problem:
            raise self.problem
        return super().put(segment, payload)

    def read(self, segment: Segment) -> Payload:
        if self.problem:
            raise self.problem
        return super().read(segment)


class Home:
    """Stores that outlive the PrefixStore over them, and an engine that makes rows."""

    def __init__(self, spec: CacheSpec, memory: int = 1 << 30) -> None:
        self.spec, self.memory, self.free = spec, memory, 1 << 30
        self.segments, self.sessions = Frail(), MemorySessionStore()
        self.driver = Driver(MemoryEngine.of(spec=spec))

    def open(self, digest: bytes = b"model") -> PrefixStore:
        stores = Stores(
            codec("native"),
            self.segments,
            self.sessions,
            NullTelemetry(),
            self.memory,
            1 << 30,
            disk_floor=1 << 20,
            free_bytes=lambda: self.free,
        )
        return PrefixStore.open(Origin(digest, self.spec), stores)

    def close(self, store: PrefixStore) -> None:
        store.flush()
        store.check_integrity()
        store.close()
        self.sessions = self.sessions.reopened()

    def rows_of(self, ids: list[int]) -> "Exporter":
        sequence = hash(tuple(ids))
        self.driver.engine.drop(sequence)
        self.driver.begin(sequence, ids)
        return Exporter(self.driver, sequence)


class Exporter:
    """The rows of one sequence of the engine."""

    def __init__(self, driver: Driver, sequence: int) -> None:
        self.driver, self.sequence = driver, sequence

    def export(self, _sequence: int, start: int, stop: int) -> Rows:
        return copied(self.driver.engine.export(self.sequence, start, stop))


class Blank:
    """Remembers the last rows that it made."""

    def __init__(self, home: Home) -> None:
        self.home, self.rows = home, Rows(0, 0)

    def __call__(self, count: int) -> Rows:
        self.home.driver.engine.drop(-1)
        self.rows = self.home.driver.engine.start(-1, 128, count)
        return self.rows


@pytest.fixture(params=SPECS)
def home(request: pytest.FixtureRequest) -> Home:
    return Home(SPECS[request.param])


@pytest.fixture
def store(home: Home) -> Iterator[PrefixStore]:
    opened = home.open()
    yield opened
    opened.close()


def test_rows_come_back_to_the_bit_whatever_the_shape_of_the_cache(
    home: Home, store: PrefixStore
) -> None:
    source, blank = home.rows_of(PROMPT), Blank(home)
    assert store.keep(tokens(PROMPT), source).durable
    assert store.restore(tokens([*PROMPT, 5]), blank) == len(PROMPT)
    assert same_bits(blank.rows, source.export(0, 0, len(PROMPT)))


def test_a_longer_conversation_adds_its_own_rows(home: Home, store: PrefixStore) -> None:
    longer = [*PROMPT, *range(3, 20)]
    store.keep(tokens(PROMPT), home.rows_of(PROMPT))
    assert store.keep(tokens(longer), home.rows_of(longer)).new == len(longer) - len(PROMPT)
    blank = Blank(home)
    assert store.restore(tokens([*longer, 5]), blank) == len(longer)
    assert same_bits(blank.rows, home.rows_of(longer).export(0, 0, len(longer)))


STEPS = range(len(PROMPT), len(PROMPT) + 2 * 40 + 1, 2)


def longer(stop: int) -> list[int]:
    return [*PROMPT, *(5 * n % 250 + 3 for n in range(len(PROMPT), stop))]


class TestKeptPieceByPiece:
    """A conversation whose every step is kept."""

    def test_it_is_put_together_and_comes_back_to_the_bit(
        self, home: Home, store: PrefixStore
    ) -> None:
        whole = longer(STEPS[-1])
        for stop in STEPS:
            store.keep(tokens(whole[:stop]), home.rows_of(whole[:stop]))
        store.flush()
        store.check_integrity()
        assert pieces(store, whole) < MOST_SMALL < len(STEPS)
        assert len(home.segments._kept) == pieces(store, whole)
        blank = Blank(home)
        assert store.restore(tokens([*whole, 5]), blank) == len(whole)
        assert same_bits(blank.rows, home.rows_of(whole).export(0, 0, len(whole)))

    def test_also_when_nobody_waits_for_it(self, home: Home, store: PrefixStore) -> None:
        whole = longer(STEPS[-1])
        for stop in STEPS:
            store.keep(tokens(whole[:stop]), home.rows_of(whole[:stop]), wait=False)
        store.flush()
        assert pieces(store, whole) < MOST_SMALL

    def test_also_when_the_home_is_opened_anew_for_every_step(self, home: Home) -> None:
        whole = longer(STEPS[-1])
        blank = Blank(home)
        for stop in STEPS:
            once = home.open()
            once.keep(tokens(whole[:stop]), home.rows_of(whole[:stop]))
            once.close()
            home.sessions = home.sessions.reopened()
        last = home.open()
        assert pieces(last, whole) < MOST_SMALL
        assert last.restore(tokens([*whole, 5]), blank) == len(whole)
        assert same_bits(blank.rows, home.rows_of(whole).export(0, 0, len(whole)))
        home.close(last)

    def test_what_parts_from_it_stays_whole(self, home: Home, store: PrefixStore) -> None:
        whole, blank = longer(STEPS[-1]), Blank(home)
        parted = [*whole[: STEPS[9]], *PROMPT]
        for stop in STEPS:
            store.keep(tokens(whole[:stop]), home.rows_of(whole[:stop]))
            if stop == STEPS[9]:
                store.keep(tokens(parted), home.rows_of(parted))
        store.flush()
        store.check_integrity()
        assert store.restore(tokens([*parted, 5]), blank) == len(parted)
        assert same_bits(blank.rows, home.rows_of(parted).export(0, 0, len(parted)))

    def test_a_home_that_takes_nothing_any_more_keeps_the_chain(self, home: Home) -> None:
        whole = longer(STEPS[-1])
        store = home.open()
        for stop in STEPS[:5]:
            store.keep(tokens(whole[:stop]), home.rows_of(whole[:stop]))
        home.segments.problem = OSError("the disk is on fire")
        for stop in STEPS[5:]:
            store.keep(tokens(whole[:stop]), home.rows_of(whole[:stop]))
        store.flush()
        assert store.restore(tokens([*whole, 5]), Blank(home)) == len(whole)
        home.segments.problem = None
        more = longer(STEPS[-1] + 2)
        assert store.keep(tokens(more), home.rows_of(more)).durable
        home.close(store)


def pieces(store: PrefixStore, ids: list[int]) -> int:
    """How many segments the rows of `ids` lie in."""
    return len(store._match(tokens([*ids, 5])).steps)


def test_whoever_opens_the_stores_next_finds_the_rows(home: Home) -> None:
    first = home.open()
    first.keep(tokens(PROMPT), home.rows_of(PROMPT), wait=False)
    home.close(first)
    second = home.open()
    assert second.restore(tokens([*PROMPT, 5]), Blank(home)) == len(PROMPT)
    home.close(second)


def test_another_model_finds_nothing(home: Home) -> None:
    first = home.open()
    first.keep(tokens(PROMPT), home.rows_of(PROMPT))
    home.close(first)
    second = home.open(b"another")
    assert second.known(tokens([*PROMPT, 5])) == 0
    home.close(second)


def test_what_cannot_be_read_is_a_miss_and_is_kept_anew(home: Home) -> None:
    home.memory = 0
    store = home.open()
    store.keep(tokens(PROMPT), home.rows_of(PROMPT))
    assert store.memory_bytes == 0
    home.segments.problem = SegmentCorrupt(b"segment", "of no use")
    assert store.restore(tokens([*PROMPT, 5]), Blank(home)) == 0
    home.segments.problem = None
    assert store.keep(tokens(PROMPT), home.rows_of(PROMPT)).new == len(PROMPT)
    assert store.restore(tokens([*PROMPT, 5]), Blank(home)) == len(PROMPT)
    home.close(store)


def test_what_cannot_be_written_stays_in_ram_and_is_written_later(home: Home) -> None:
    store = home.open()
    home.segments.problem = OSError("the disk is on fire")
    kept = store.keep(tokens(PROMPT), home.rows_of(PROMPT))
    assert (kept.durable, kept.problem) == (False, "the disk is on fire")
    assert store.restore(tokens([*PROMPT, 5]), Blank(home)) == len(PROMPT)
    home.segments.problem = None
    assert store.keep(tokens(PROMPT), home.rows_of(PROMPT)).durable
    home.close(store)


def test_the_disk_is_not_filled_up(home: Home) -> None:
    store = home.open()
    home.free = 1 << 20
    kept = store.keep(tokens(PROMPT), home.rows_of(PROMPT))
    assert kept.durable is False
    assert "bytes free" in str(kept.problem)
    home.free = 1 << 30
    assert store.keep(tokens(PROMPT), home.rows_of(PROMPT)).durable
    home.close(store)


def test_rows_that_cannot_be_exported_leave_nothing_behind(home: Home, store: PrefixStore) -> None:
    class Broken:
        def export(self, _sequence: int, _start: int, _stop: int) -> Rows:
            raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="the device is gone"):
        store.keep(tokens(PROMPT), Broken())
    store.check_integrity()
    assert store.known(tokens([*PROMPT, 5])) == 0
    assert store.keep(tokens(PROMPT), home.rows_of(PROMPT)).durable


def test_several_threads_keep_and_restore_at_once(home: Home, store: PrefixStore) -> None:
    prompts = [[n, *PROMPT] for n in range(3, 11)]
    sources = [home.rows_of(ids) for ids in prompts]
    kept = [Exported(source.export(0, 0, len(PROMPT) + 1)) for source in sources]
    blank = copied(sources[0].export(0, 0, len(PROMPT) + 1))
    restored: list[int] = []

    def work(ids: list[int], source: Exported) -> None:
        store.keep(tokens(ids), source)
        restored.append(store.restore(tokens([*ids, 5]), lambda _count: copied(blank)))

    threads = [threading.Thread(target=work, args=one) for one in zip(prompts, kept, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert restored == [len(PROMPT) + 1] * len(prompts)
    store.check_integrity()


class Exported:
    """All the rows of one sequence, whoever asks."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def export(self, _sequence: int, _start: int, _stop: int) -> Rows:
        return self.rows


def test_a_closed_store_refuses_everything(home: Home) -> None:
    store = home.open()
    store.close()
    store.close()
    for call in (
        lambda: store.known(tokens(PROMPT)),
        lambda: store.restore(tokens(PROMPT), Blank(home)),
        lambda: store.keep(tokens(PROMPT), home.rows_of(PROMPT)),
        store.flush,
    ):
        with pytest.raises(ValueError, match="closed"):
            call()
