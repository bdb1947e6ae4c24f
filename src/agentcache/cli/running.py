"""The whole of agentcache, opened and closed around a command."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agentcache.cli.progress import progress_bar
from agentcache.settings import Settings

if TYPE_CHECKING:
    from agentcache.container import Container
    from agentcache.loop import EngineLoop

_LOOK_SECONDS = 0.05

log = logging.getLogger(__name__)


@contextmanager
def running(settings: Settings) -> Iterator["Container"]:
    """A container whose home is ours, whose model is on disk, and whose loop is opening.

    At the end the loop has committed everything and stopped. Raises HomeLocked, HomeError,
    ModelError.
    """
    from agentcache.library import opening

    container = opening.container_of(settings, {})
    with opening.running(container, progress_bar):
        try:
            yield container
        finally:
            _finish(container.loop())


def _finish(loop: "EngineLoop") -> None:
    """Have everything committed.

    A model that is being loaded is not waited for: nothing hurries a load, and before it ends
    nothing is promised. Nor is an engine that stands still, which may be for ever: what was
    answered is committed, and the rest is lost anyway.
    """
    loop.stop(within=0)
    while loop.is_alive() and not loop.wait_over(_LOOK_SECONDS):
        if loop.is_loading and not isinstance(sys.exception(), Exception):
            _leave(130 if isinstance(sys.exception(), KeyboardInterrupt) else 0)
        if loop.is_stalled:
            log.error("the engine has not finished a step for %.0f s: not waited for", loop.silence)
            _leave(1)


def _leave(status: int) -> None:
    """End the process at once."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
