"""All segments of a home in one SQLite file: an adapter of agentcache's port SegmentStore."""

from pathlib import Path

from agentcache_onefile.store import OneFileStore

__all__ = ["OneFileStore", "open_store"]


def open_store(home: Path) -> OneFileStore:
    """What the entry point makes: the store in the folder `home`, which this process owns."""
    return OneFileStore.open(home / "segments.sqlite3")
