"""A medium that fails, or loses what was not synced, at any change that is made to it."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults.medium import Fault, File, Folder, Medium
from tests.faults.sqlite_vfs import sqlite_writes_to
from tests.faults.system_calls import python_writes_to

__all__ = ["Fault", "File", "Folder", "Medium", "on"]


@contextmanager
def on(medium: Medium) -> Iterator[None]:
    """Lead all that is done to files below the home of `medium` over it."""
    with python_writes_to(medium), sqlite_writes_to(medium):
        yield
