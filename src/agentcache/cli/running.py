"""The whole of agentcache, opened and closed around a command."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agentcache.cli.progress import progress_bar
from agentcache.settings import Settings

if TYPE_CHECKING:
    from agentcache.container import Container


@contextmanager
def running(settings: Settings) -> Iterator["Container"]:
    """A container whose home is ours, whose model is on disk, and whose loop is opening.

    At the end the loop has committed everything and stopped. Raises HomeLocked, HomeError,
    ModelError.
    """
    from agentcache.library import opening

    container = opening.container_of(settings, {})
    with opening.running(container, progress_bar):
        yield container
