"""What every segment store promises."""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import TestCase

import pytest
from attrs import evolve
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from agentcache.domain.errors import SegmentCorrupt, SegmentMissing
from agentcache.domain.segment import Segment
from agentcache.domain.tokens import Tokens, tokens
from agentcache.ports.payload import Payload, Tensor
from agentcache.ports.segment_store import SegmentStore
from agentcache.testing import strategies

Make = Callable[[Path, int], SegmentStore]
QUARANTINE_BYTES = 1 << 20


class SegmentStoreContract:
    """Subclass it, and override the fixture `make`.

    It gives a function that opens the store in a folder, made if it is not there, with so many
    bytes for corrupt payloads. A store that has `check_integrity` or `close` is asked for them.
    """

    @pytest.fixture
    def make(self) -> Make:
        """Opens the store under test."""
        raise NotImplementedError("override the fixture `make`")

    @pytest.fixture
    def store(self, make: Make, tmp_path: Path) -> Iterator[SegmentStore]:
        """An empty store."""
        opened = make(tmp_path, QUARANTINE_BYTES)
        yield opened
        _check(opened)
        _close(opened)

    def test_what_was_put_is_read(self, store: SegmentStore) -> None:
        payload = a_payload(5)
        segment = a_segment(payload)
        taken = store.put(segment, payload)
        assert taken >= payload.nbytes
        assert store.nbytes() == taken
        assert content(store.read(segment)) == content(payload)

    def test_a_segment_that_was_never_put_is_missing(self, store: SegmentStore) -> None:
        with pytest.raises(SegmentMissing):
            store.read(a_segment(a_payload(5)))

    def test_putting_again_replaces_and_takes_no_more(self, store: SegmentStore) -> None:
        payload = a_payload(5)
        segment = a_segment(payload)
        taken = store.put(segment, payload)
        assert store.put(segment, payload) == taken
        assert store.nbytes() == taken
        assert content(store.read(segment)) == content(payload)

    def test_a_deleted_segment_is_missing_and_takes_nothing(self, store: SegmentStore) -> None:
        payload = a_payload(5)
        segment = a_segment(payload)
        store.put(segment, payload)
        store.delete(segment.key)
        store.delete(segment.key)
        assert store.nbytes() == 0
        with pytest.raises(SegmentMissing):
            store.read(segment)

    def test_a_payload_of_other_rows_or_bytes_than_its_segment_is_not_kept(
        self, store: SegmentStore
    ) -> None:
        payload = a_payload(5)
        for segment in (
            a_segment(a_payload(6)),
            evolve(a_segment(payload), nbytes=payload.nbytes + 1),
        ):
            with pytest.raises(ValueError, match="is not that of a segment"):
                store.put(segment, payload)
            with pytest.raises(SegmentMissing):
                store.read(segment)
        assert store.nbytes() == 0

    def test_a_segment_is_only_read_by_the_very_same_lineage(self, store: SegmentStore) -> None:
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

    def test_a_quarantined_segment_is_missing_but_still_counted(self, store: SegmentStore) -> None:
        payload = a_payload(5)
        segment = a_segment(payload)
        taken = store.put(segment, payload)
        store.quarantine(segment.key)
        store.quarantine(segment.key)
        assert store.nbytes() == taken
        with pytest.raises(SegmentMissing):
            store.read(segment)

    def test_a_segment_can_be_put_again_after_it_was_quarantined(self, store: SegmentStore) -> None:
        payload = a_payload(5)
        segment = a_segment(payload)
        taken = store.put(segment, payload)
        store.quarantine(segment.key)
        store.put(segment, payload)
        assert store.nbytes() == 2 * taken
        assert content(store.read(segment)) == content(payload)

    def test_the_quarantine_never_grows_beyond_its_cap(self, make: Make, tmp_path: Path) -> None:
        payload = a_payload(5)
        cap = 2 * payload.nbytes + 1500  # room for two of them, headers or not
        store = make(tmp_path, cap)
        for first in range(50):
            segment = a_segment(payload, first)
            taken = store.put(segment, payload)
            store.quarantine(segment.key)
            _check(store)
            assert store.nbytes() <= cap
        assert store.nbytes() > cap - taken
        _close(store)

    def test_sweeping_leaves_what_is_known_and_nothing_else(self, store: SegmentStore) -> None:
        payload = a_payload(5)
        segments = [a_segment(payload, first) for first in range(4)]
        sizes = [store.put(segment, payload) for segment in segments]
        assert store.sweep({segments[1].key, segments[3].key, bytes(32)}) == 2
        assert store.nbytes() == sizes[1] + sizes[3]
        assert content(store.read(segments[3])) == content(payload)
        with pytest.raises(SegmentMissing):
            store.read(segments[0])

    def test_an_empty_store_holds_nothing(self, store: SegmentStore) -> None:
        assert store.nbytes() == 0
        assert store.sweep([]) == 0


def segment_store_machine(make: Make, *, reopens: bool = True) -> type[TestCase]:
    """Any order of calls against a dict: a test case, to be bound to a name that begins with Test.

    With `reopens` the store is closed and opened again in between: what was put is still there.
    """

    class Machine(_SegmentStoreMachine):
        def open(self) -> SegmentStore:
            return make(Path(self.folder.name), QUARANTINE_BYTES)

        def reopened(self) -> SegmentStore:
            if not reopens:
                return self.store
            _close(self.store)
            return self.open()

    return Machine.TestCase


def a_payload(rows: int, fill: int = 1, width: int = 4) -> Payload:
    """A payload of tensors of several dtypes, one of them empty."""
    tensors = {
        "g0.k": Tensor("F32", (rows, 1, width), memoryview(bytes([fill]) * (rows * width * 4))),
        "g0.v": Tensor("BF16", (rows, 1, 2), memoryview(bytes([fill + 1]) * (rows * 4))),
        "g0.k.x": Tensor("F32", (0, 4), memoryview(b"")),
    }
    return Payload("native", rows, tensors)


def a_segment(payload: Payload, first: int = 0) -> Segment:
    """The segment of ids from `first` on that `payload` belongs to."""
    ids = tokens(range(first, first + payload.rows))
    return Segment.following(strategies.ROOT, None, 0, ids, payload.nbytes)


def content(payload: Payload) -> object:
    """Everything in `payload`, to be compared."""
    tensors = {
        name: (one.dtype, one.shape, bytes(one.data)) for name, one in payload.tensors.items()
    }
    return payload.codec, payload.rows, tensors


def _check(store: SegmentStore) -> None:
    getattr(store, "check_integrity", lambda: None)()


def _close(store: SegmentStore) -> None:
    getattr(store, "close", lambda: None)()


class _SegmentStoreMachine(RuleBasedStateMachine):
    """Any order of calls, and reopening, against a dict."""

    segments: Bundle[tuple[Segment, Payload]] = Bundle("segments")

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.store = self.open()
        self.kept: dict[bytes, Payload] = {}
        self.sizes: dict[bytes, int] = {}
        self.aside = 0

    def open(self) -> SegmentStore:
        raise NotImplementedError

    def teardown(self) -> None:
        _close(self.store)
        self.folder.cleanup()

    @rule(target=segments, data=st.data(), ids=strategies.some_ids, start=st.integers(0, 3))
    def make_segment(
        self, data: st.DataObject, ids: "Tokens[int]", start: int
    ) -> tuple[Segment, Payload]:
        payload = data.draw(strategies.payloads(len(ids)))
        parent = strategies.OTHER_ROOT if start else None
        return Segment.following(strategies.ROOT, parent, start, ids, payload.nbytes), payload

    @rule(one=segments)
    def put(self, one: tuple[Segment, Payload]) -> None:
        segment, payload = one
        self.sizes[segment.key] = self.store.put(segment, payload)
        self.kept[segment.key] = payload
        assert self.sizes[segment.key] >= payload.nbytes

    @rule(one=segments)
    def read(self, one: tuple[Segment, Payload]) -> None:
        segment, payload = one
        if segment.key not in self.kept:
            with pytest.raises(SegmentMissing):
                self.store.read(segment)
        elif content(self.kept[segment.key]) == content(payload):
            assert content(self.store.read(segment)) == content(payload)

    @rule(one=segments)
    def delete(self, one: tuple[Segment, Payload]) -> None:
        self.store.delete(one[0].key)
        self.forget(one[0].key)

    @rule(one=segments)
    def quarantine(self, one: tuple[Segment, Payload]) -> None:
        self.store.quarantine(one[0].key)
        self.aside += self.forget(one[0].key)

    @rule(data=st.data())
    def sweep(self, data: st.DataObject) -> None:
        known = data.draw(st.sets(st.sampled_from(sorted(self.kept)))) if self.kept else set()
        lost = self.kept.keys() - known
        assert self.store.sweep(known) == len(lost)
        for key in lost:
            self.forget(key)

    @rule()
    def reopen(self) -> None:
        self.store = self.reopened()

    def reopened(self) -> SegmentStore:
        raise NotImplementedError

    def forget(self, key: bytes) -> int:
        self.kept.pop(key, None)
        return self.sizes.pop(key, 0)

    @invariant()
    def bytes_are_counted_exactly(self) -> None:
        assert self.store.nbytes() == sum(self.sizes.values()) + self.aside
        _check(self.store)
