"""The port to the catalogue: which segments there are, and where every session stands."""

from typing import Protocol

from attrs import frozen

from agentcache.domain.segment import Segment
from agentcache.domain.session import Session, SessionKey


@frozen
class Catalogue:
    """All that a home knows when it is opened. Parents come before their children."""

    segments: tuple[Segment, ...] = ()
    sessions: tuple[Session, ...] = ()


@frozen
class Commit:
    """One atomic change. `add` and `drop` are segments, `put` and `forget` sessions."""

    add: tuple[Segment, ...] = ()
    drop: tuple[bytes, ...] = ()
    put: tuple[Session, ...] = ()
    forget: tuple[SessionKey, ...] = ()


class SessionStore(Protocol):
    """The catalogue of a home. All methods are called from one thread."""

    def load(self) -> Catalogue:
        """Everything that was committed. Raises HomeError when the catalogue is damaged."""
        ...

    def commit(self, change: Commit) -> None:
        """Make the whole change durable, or none of it.

        What is dropped and forgotten goes first; what is not there is no error. Every reference is
        checked again here, against what the change leaves: raises CatalogueConflict when the row
        that an added segment follows, or at which a session's cursor stands, is not there or has
        another root, or when a dropped segment is still referred to. Only the spans and messages
        that differ from those stored are written. Raises StoreFull or OSError when it cannot be
        written, CommitInDoubt when it is not known whether it was, and HomeError when the catalogue
        is damaged.
        """
        ...

    def salt(self) -> bytes:
        """The home's random secret of 32 bytes, made when the home is."""
        ...

    def close(self) -> None:
        """Release what is open; later calls raise ValueError."""
        ...
