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
    from agentcache.container import Container

    container = Container()
    container.settings.override(settings)
    with container.home():
        with progress_bar(settings.model) as progress:
            container.progress.override(progress)
            container.model()
        loop = container.loop()
        loop.start()
        try:
            yield container
        finally:
            loop.stop(within=0)
            loop.join()
