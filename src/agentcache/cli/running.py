"""The whole of agentcache, opened and closed around a command."""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
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
        threads = threading.enumerate()
        try:
            yield container
        finally:
            loop.stop(within=0)
            loop.join()
            _wait_for_native_end(one for one in threads if not one.is_alive())


def _wait_for_native_end(ended: Iterable[threading.Thread]) -> None:
    """Wait until the system has no such threads either, at most 5 s.

    Before Python 3.13, `join` returns while a thread's C++ thread-locals are still being destroyed.
    MLX's need the interpreter for that, and abort the process if it is gone by then.
    """
    until = time.monotonic() + 5
    for thread in ended:
        entry = Path(f"/proc/self/task/{thread.native_id}")
        while entry.exists() and time.monotonic() < until:
            time.sleep(0.001)
