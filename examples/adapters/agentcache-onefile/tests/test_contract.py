"""The contract of segment stores, over this one."""

from pathlib import Path

import pytest
from agentcache_onefile import OneFileStore, open_store

from agentcache import plugins
from agentcache.domain.errors import SegmentCorrupt
from agentcache.testing.segment_store import (
    Make,
    SegmentStoreContract,
    a_payload,
    a_segment,
    segment_store_machine,
)


def make(folder: Path, quarantine_bytes: int) -> OneFileStore:
    return OneFileStore.open(folder / "segments.sqlite3", quarantine_bytes)


class TestOneFileStore(SegmentStoreContract):
    @pytest.fixture
    def make(self) -> Make:
        return make


TestOneFileStoreMachine = segment_store_machine(make)


def test_the_entry_point_makes_one(tmp_path: Path) -> None:
    store = plugins.made("segments", "onefile", tmp_path)
    assert isinstance(store, OneFileStore)
    store.close()
    assert (tmp_path / "segments.sqlite3").stat().st_mode & 0o777 == 0o600


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    store, payload = open_store(tmp_path), a_payload(50)
    segment = a_segment(payload)
    store.put(segment, payload)
    store.close()
    path = tmp_path / "segments.sqlite3"
    content = path.read_bytes()
    body = bytes(payload.tensors["g0.k"].data)
    path.write_bytes(content.replace(body, b"\x07" + body[1:]))
    store = open_store(tmp_path)
    with pytest.raises(SegmentCorrupt):
        store.read(segment)
    store.close()
