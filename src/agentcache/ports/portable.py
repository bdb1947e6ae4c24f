"""The port to files that carry one agent from home to home."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from attrs import frozen

from agentcache.domain.segment import Segment, root_key
from agentcache.domain.session import Session
from agentcache.ports.payload import Payload


@frozen
class Origin:
    """What the rows of an agent mean something to: the model, how it was run, the encoding."""

    model: str
    digest: bytes
    dtype: str
    epoch: int
    codec: str

    @property
    def root(self) -> bytes:
        """The root of the keys within a file: that of no tenant and no home."""
        return root_key(self.digest, self.dtype, self.epoch, self.codec, tenant="")


@frozen
class Portable:
    """An agent with the segments of its path, the root's child first, keyed under `origin.root`.

    The session's key and cursor are those within the file.
    """

    origin: Origin
    session: Session
    segments: tuple[Segment, ...] = ()


class PortableFile(Protocol):
    """A file that was verified as a whole."""

    @property
    def portable(self) -> Portable:
        """The agent in it."""
        ...

    def read(self, index: int) -> Payload:
        """The payload of the segment `index`, verified once more. Raises InvalidRequest."""
        ...


class PortableFiles(Protocol):
    """Writes and reads such files. Called from any thread."""

    def write(self, path: Path, portable: Portable, read: Callable[[int], Payload]) -> int:
        """Write `path` wholly or not at all, one payload at a time; returns its bytes.

        `read` gives the payload of a segment by its index. Raises OSError, and what `read` raises.
        """
        ...

    def open(self, path: Path) -> AbstractContextManager[PortableFile]:
        """The file, every byte of it verified. Raises InvalidRequest, OSError."""
        ...
