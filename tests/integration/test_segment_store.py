"""The contract of segment stores, over every adapter."""

from pathlib import Path

import pytest

from agentcache.adapters.disk.segments import DiskSegmentStore
from agentcache.adapters.memory.segment_store import MemorySegmentStore
from agentcache.testing.segment_store import Make, SegmentStoreContract, segment_store_machine


def disk_store(folder: Path, quarantine_bytes: int = 1 << 20) -> DiskSegmentStore:
    return DiskSegmentStore.open(folder / "segments", folder / "quarantine", quarantine_bytes)


def memory_store(_folder: Path, quarantine_bytes: int) -> MemorySegmentStore:
    return MemorySegmentStore(quarantine_bytes=quarantine_bytes)


class TestDiskSegmentStore(SegmentStoreContract):
    @pytest.fixture
    def make(self) -> Make:
        return disk_store


class TestMemorySegmentStore(SegmentStoreContract):
    @pytest.fixture
    def make(self) -> Make:
        return memory_store


TestDiskSegmentStoreMachine = segment_store_machine(disk_store)
TestMemorySegmentStoreMachine = segment_store_machine(memory_store, reopens=False)
