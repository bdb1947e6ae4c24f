"""The contract of segment stores, kept by every adapter."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import pytest
from attrs import evolve
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from agentcache.adapters.disk.segments import DiskSegmentStore
from agentcache.adapters.memory.segment_store import MemorySegmentStore
from agentcache.domain.errors import SegmentCorrupt, SegmentMissing
from agentcache.domain.segment import Segment
from agentcache.domain.tokens import tokens
from agentcache.ports.payload import Payload, Tensor
from agentcache.ports.segment_store import SegmentStore
from tests.unit import strategies


class Store(SegmentStore, Protocol):
    """What every shipped store has besides the port."""

    def check_integrity(self) -> None: ...
    def close(self) -> None: ...


def disk_store(folder: Path, quarantine_bytes: int = 1 << 20) -> DiskSegmentStore:
    return DiskSegmentStore.open(folder / "segments", folder / "quarantine", quarantine_bytes)


def memory_store(_folder: Path, quarantine_bytes: int = 1 << 20) -> MemorySegmentStore:
    return MemorySegmentStore(quarantine_bytes=quarantine_bytes)


MAKERS: dict[str, Callable[..., Store]] = {"disk": disk_store, "memory": memory_store}


@pytest.fixture(params=MAKERS)
def make(request) -> Callable[..., Store]:
    return MAKERS[request.param]


@pytest.fixture
def store(make, tmp_path):
    opened = make(tmp_path)
    yield opened
    opened.check_integrity()
    opened.close()


def a_payload(rows: int, fill: int = 1, width: int = 4) -> Payload:
    tensors = {
        "g0.k": Tensor("F32", (rows, 1, width), memoryview(bytes([fill]) * (rows * width * 4))),
        "g0.v": Tensor("BF16", (rows, 1, 2), memoryview(bytes([fill + 1]) * (rows * 4))),
        "g0.k.x": Tensor("F32", (0, 4), memoryview(b"")),
    }
    return Payload("native", rows, tensors)


def a_segment(payload: Payload, first: int = 0) -> Segment:
    ids = tokens(range(first, first + payload.rows))
    return Segment.following(strategies.ROOT, None, 0, ids, payload.nbytes)


def content(payload: Payload) -> object:
    tensors = {
        name: (one.dtype, one.shape, bytes(one.data)) for name, one in payload.tensors.items()
    }
    return payload.codec, payload.rows, tensors


def test_what_was_put_is_read(store):
    payload = a_payload(5)
    segment = a_segment(payload)
    taken = store.put(segment, payload)
    assert taken >= payload.nbytes
    assert store.nbytes() == taken
    assert content(store.read(segment)) == content(payload)


def test_a_segment_that_was_never_put_is_missing(store):
    with pytest.raises(SegmentMissing):
        store.read(a_segment(a_payload(5)))


def test_putting_again_replaces_and_takes_no_more(store):
    payload = a_payload(5)
    segment = a_segment(payload)
    taken = store.put(segment, payload)
    assert store.put(segment, payload) == taken
    assert store.nbytes() == taken
    assert content(store.read(segment)) == content(payload)


def test_a_deleted_segment_is_missing_and_takes_nothing(store):
    payload = a_payload(5)
    segment = a_segment(payload)
    store.put(segment, payload)
    store.delete(segment.key)
    store.delete(segment.key)
    assert store.nbytes() == 0
    with pytest.raises(SegmentMissing):
        store.read(segment)


def test_a_payload_of_other_rows_or_bytes_than_its_segment_is_not_kept(store):
    payload = a_payload(5)
    for segment in (a_segment(a_payload(6)), evolve(a_segment(payload), nbytes=payload.nbytes + 1)):
        with pytest.raises(ValueError, match="is not that of a segment"):
            store.put(segment, payload)
        with pytest.raises(SegmentMissing):
            store.read(segment)
    assert store.nbytes() == 0


def test_a_segment_is_only_read_by_the_very_same_lineage(store):
    payload = a_payload(5)
    segment = a_segment(payload)
    store.put(segment, payload)
    for other in (
        evolve(segment, root=strategies.OTHER_ROOT),
        evolve(segment, parent=segment.key),
        evolve(segment, start=1),
        evolve(segment, ids=tokens([0, 1, 2, 3, 5])),
        evolve(segment, ids=tokens([0, 1, 2, 3])),
        evolve(segment, nbytes=segment.nbytes - 1),
    ):
        with pytest.raises(SegmentCorrupt):
            store.read(other)
    store.read(segment)


def test_a_quarantined_segment_is_missing_but_still_counted(store):
    payload = a_payload(5)
    segment = a_segment(payload)
    taken = store.put(segment, payload)
    store.quarantine(segment.key)
    store.quarantine(segment.key)
    assert store.nbytes() == taken
    with pytest.raises(SegmentMissing):
        store.read(segment)


def test_a_segment_can_be_put_again_after_it_was_quarantined(store):
    payload = a_payload(5)
    segment = a_segment(payload)
    taken = store.put(segment, payload)
    store.quarantine(segment.key)
    store.put(segment, payload)
    assert store.nbytes() == 2 * taken
    assert content(store.read(segment)) == content(payload)


def test_the_quarantine_never_grows_beyond_its_cap(make, tmp_path):
    payload = a_payload(5)
    cap = 2 * payload.nbytes + 1500  # room for two of them, headers or not
    store = make(tmp_path, quarantine_bytes=cap)
    for first in range(50):
        segment = a_segment(payload, first)
        taken = store.put(segment, payload)
        store.quarantine(segment.key)
        store.check_integrity()
        assert store.nbytes() <= cap
    assert store.nbytes() > cap - taken
    store.close()


def test_sweeping_leaves_what_is_known_and_nothing_else(store):
    payload = a_payload(5)
    segments = [a_segment(payload, first) for first in range(4)]
    sizes = [store.put(segment, payload) for segment in segments]
    assert store.sweep({segments[1].key, segments[3].key, bytes(32)}) == 2
    assert store.nbytes() == sizes[1] + sizes[3]
    assert content(store.read(segments[3])) == content(payload)
    with pytest.raises(SegmentMissing):
        store.read(segments[0])


def test_an_empty_store_holds_nothing(store):
    assert store.nbytes() == 0
    assert store.sweep([]) == 0


class SegmentStoreMachine(RuleBasedStateMachine):
    """Any order of calls, and reopening, against a dict."""

    segments = Bundle("segments")

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.store = self.open()
        self.kept: dict[bytes, Payload] = {}
        self.sizes: dict[bytes, int] = {}
        self.aside = 0

    def open(self) -> Store:
        raise NotImplementedError

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @rule(target=segments, data=st.data(), ids=strategies.some_ids, start=st.integers(0, 3))
    def make_segment(self, data, ids, start):
        payload = data.draw(strategies.payloads(len(ids)))
        parent = strategies.OTHER_ROOT if start else None
        return Segment.following(strategies.ROOT, parent, start, ids, payload.nbytes), payload

    @rule(one=segments)
    def put(self, one):
        segment, payload = one
        self.sizes[segment.key] = self.store.put(segment, payload)
        self.kept[segment.key] = payload
        assert self.sizes[segment.key] >= payload.nbytes

    @rule(one=segments)
    def read(self, one):
        segment, payload = one
        if segment.key not in self.kept:
            with pytest.raises(SegmentMissing):
                self.store.read(segment)
        elif content(self.kept[segment.key]) == content(payload):
            assert content(self.store.read(segment)) == content(payload)

    @rule(one=segments)
    def delete(self, one):
        self.store.delete(one[0].key)
        self.forget(one[0].key)

    @rule(one=segments)
    def quarantine(self, one):
        self.store.quarantine(one[0].key)
        self.aside += self.forget(one[0].key)

    @rule(data=st.data())
    def sweep(self, data):
        known = data.draw(st.sets(st.sampled_from(sorted(self.kept)))) if self.kept else set()
        lost = self.kept.keys() - known
        assert self.store.sweep(known) == len(lost)
        for key in lost:
            self.forget(key)

    @rule()
    def reopen(self):
        self.store = self.reopened()

    def reopened(self) -> Store:
        self.store.close()
        return self.open()

    def forget(self, key: bytes) -> int:
        self.kept.pop(key, None)
        return self.sizes.pop(key, 0)

    @invariant()
    def bytes_are_counted_exactly(self):
        assert self.store.nbytes() == sum(self.sizes.values()) + self.aside
        self.store.check_integrity()


class DiskMachine(SegmentStoreMachine):
    def open(self):
        return disk_store(Path(self.folder.name))


class MemoryMachine(SegmentStoreMachine):
    def open(self):
        return memory_store(Path(self.folder.name))

    def reopened(self):
        return self.store


TestDiskSegmentStoreMachine = DiskMachine.TestCase
TestMemorySegmentStoreMachine = MemoryMachine.TestCase
