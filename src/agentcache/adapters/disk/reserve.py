"""Room that is kept free for the one write that makes room: forgetting what shall be deleted."""

import os
from contextlib import suppress
from pathlib import Path
from secrets import token_bytes

from attrs import define

from agentcache.adapters.disk.files import create, remove, size

RESERVE_BYTES = 1 << 20


@define(eq=False)
class Reserve:
    """A file that does nothing but take RESERVE_BYTES, until they are needed."""

    path: Path

    def fill(self) -> None:
        """Take the room, unless it is taken; no error when there is none to take."""
        # Whoever asks has made a commit, which must not look as if it had failed.
        with suppress(OSError):
            if size(self.path) != RESERVE_BYTES:
                remove(self.path)
                self._fill()

    def release(self) -> bool:
        """Give the room back; returns whether there was any."""
        return remove(self.path)

    def _fill(self) -> None:
        try:
            self._write()
        finally:
            if size(self.path) != RESERVE_BYTES:
                remove(self.path)

    def _write(self) -> None:
        fd = create(self.path)
        try:
            os.write(fd, token_bytes(RESERVE_BYTES))  # zeros may take no room at all
            os.fsync(fd)
        finally:
            os.close(fd)
