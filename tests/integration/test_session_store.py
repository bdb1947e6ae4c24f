"""The contract of session stores, over every adapter."""

from pathlib import Path

import pytest

from agentcache.adapters.disk.catalogue import SqliteSessionStore
from agentcache.adapters.memory.session_store import MemorySessionStore
from agentcache.ports.session_store import SessionStore
from agentcache.testing.session_store import (
    Make,
    Reopen,
    SessionStoreContract,
    session_store_machine,
)


def disk_store(folder: Path) -> SqliteSessionStore:
    return SqliteSessionStore.open(folder / "catalogue.sqlite3")


def memory_store(_folder: Path) -> MemorySessionStore:
    return MemorySessionStore()


def memory_reopened(store: SessionStore) -> MemorySessionStore:
    store.close()
    assert isinstance(store, MemorySessionStore)
    return store.reopened()


class TestSqliteSessionStore(SessionStoreContract):
    @pytest.fixture
    def make(self) -> Make:
        return disk_store


class TestMemorySessionStore(SessionStoreContract):
    @pytest.fixture
    def make(self) -> Make:
        return memory_store

    @pytest.fixture
    def reopen(self) -> Reopen:
        return memory_reopened


TestSqliteSessionStoreMachine = session_store_machine(disk_store)
TestMemorySessionStoreMachine = session_store_machine(memory_store, memory_reopened)
