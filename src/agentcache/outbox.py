"""What the home is told: every change in order, and what it could not be told with the next one."""

from collections.abc import Callable, Iterable, Mapping, Set
from functools import partial
from types import MappingProxyType
from typing import TypeVar

from attrs import define, evolve, field

from agentcache.domain.errors import CatalogueConflict
from agentcache.domain.lineage import Lineage
from agentcache.domain.path import Match
from agentcache.domain.registry import SessionRegistry
from agentcache.domain.request import Tier
from agentcache.domain.segment import Segment
from agentcache.domain.session import Cursor, Session, SessionKey
from agentcache.ports.payload import Payload
from agentcache.ports.session_store import Commit
from agentcache.writer import Job, Writer

T = TypeVar("T")
FILE_OVERHEAD = 4096  # header of a segment file, and rounding up to whole disk blocks

Post = Callable[[Callable[[], None]], None]
Took = Callable[[Exception | None], None]
Done = Callable[[bool], None]


def ignore(_durable: bool) -> None:
    """For changes whose end nobody waits for."""


@define(eq=False)
class Outbox:
    """Asks the store thread for changes, on the engine thread, where its answers are taken, too.

    `post` runs a call on the engine thread. `read_only` says why nothing can be written at the
    moment. What could not be told is owed, until the next change that is made: segments to drop,
    segments whose rows lie in the home already and have another place now (`adopt`), sessions whose
    cursors it has elsewhere.
    """

    lineage: Lineage
    registry: SessionRegistry
    writer: Writer
    post: Post
    read_only: str | None = field(default=None, init=False)
    _writing: dict[bytes, Segment] = field(factory=dict, init=False)
    _putting: dict[bytes, Segment] = field(factory=dict, init=False)
    _drops: dict[bytes, Segment] = field(factory=dict, init=False)
    _adopted: set[bytes] = field(factory=set, init=False)
    _sessions: set[SessionKey] = field(factory=set, init=False)
    _leaving_bytes: int = field(default=0, init=False)
    _untold: int = field(default=0, init=False)

    @property
    def untold(self) -> int:
        """How many answers are still to come."""
        return self._untold

    @property
    def writing(self) -> Mapping[bytes, Segment]:
        """The segments that are being written, a read-only view."""
        return MappingProxyType(self._writing)

    @property
    def dropping(self) -> Mapping[bytes, Segment]:
        """The segments that the home is owed to drop, a read-only view."""
        return MappingProxyType(self._drops)

    @property
    def adopted(self) -> Set[bytes]:
        """The segments that the home holds, and is owed the places of."""
        return self._adopted

    @property
    def coming_bytes(self) -> int:
        """What the home will take more of the disk when everything is written."""
        return weight(self._writing.values()) + weight(self._putting.values())

    @property
    def leaving_bytes(self) -> int:
        """What will be free when the store thread has dropped what it was told to."""
        return self._leaving_bytes

    def is_written(self, key: bytes) -> bool:
        """Whether the segment is in the home, or on its way there."""
        return key in self._writing or self.lineage.resides(key, Tier.COLD)

    def durable(self, path: Match) -> Cursor | None:
        """The last row of the path that is, or is about to be, in the home."""
        cursor = None
        for step in path.steps:
            if not self.is_written(step.segment.key):
                break
            cursor = Cursor(step.segment.key, step.stop)
        return cursor

    # -- asking ------------------------------------------------------------------------------

    def submit(
        self,
        commit: Commit,
        took: Took,
        payloads: Mapping[bytes, Payload] = MappingProxyType({}),
        corrupt: tuple[bytes, ...] = (),
    ) -> None:
        """Ask for `commit`, with `payloads` of what it adds; `took` is told what came of it."""
        added = tuple((one, payloads[one.key]) for one in commit.add if one.key in payloads)
        self._ask(Job(commit, added, corrupt), took)

    def put(self, segment: Segment, payload: Payload, took: Took) -> None:
        """Write a payload that no commit speaks of yet, once there is nothing else to do."""
        self._putting[segment.key] = segment

        def over(error: Exception | None) -> None:
            del self._putting[segment.key]
            took(error)

        self._ask(Job(Commit(), ((segment, payload),), idle=True), over)

    def discard(self, key: bytes) -> None:
        """Delete a payload of which no commit speaks."""
        self._ask(Job(Commit(drop=(key,))), lambda _error: None)

    def expecting(self, took: "Callable[[T], None]") -> "Callable[[T], None]":
        """`took`, to be called once, from any thread: it is an answer that is still to come."""
        self._untold += 1

        def told(answer: T) -> None:
            self._untold -= 1
            took(answer)

        return lambda answer: self.post(partial(told, answer))

    # -- writing -----------------------------------------------------------------------------

    def begin(self, segments: Iterable[Segment]) -> None:
        """`segments` are being written from now on."""
        self._writing.update((segment.key, segment) for segment in segments)

    def finish(self, segments: Iterable[Segment]) -> tuple[Segment, ...]:
        """They are not any more; returns those that were not cut meanwhile, and made anew."""
        ours = tuple(one for one in segments if self._writing.get(one.key) is one)
        for segment in ours:
            del self._writing[segment.key]
        return ours

    # -- owing -------------------------------------------------------------------------------

    def drop(self, segment: Segment) -> None:
        """The segment is gone: the home is to drop it."""
        self._writing.pop(segment.key, None)
        self._adopted.discard(segment.key)
        self._drops[segment.key] = segment

    def adopt(self, segments: Iterable[Segment]) -> None:
        """The home holds the payloads of these segments, and is to give them their places."""
        self._adopted.update(segment.key for segment in segments)

    def move(self, session: SessionKey) -> None:
        """The home is to have the session where it stands, or not at all."""
        self._sessions.add(session)

    def settle(self, corrupt: tuple[bytes, ...] = (), done: Done = ignore) -> None:
        """Tell the home all that it is owed, in one change; `done` is told whether it knows.

        A session that the home has at a segment keeps it from dropping this segment, and a segment
        that has another place keeps it from dropping the one that it was at.
        """
        drops, self._drops = self._drops, {}
        adopted, self._adopted = self._adopted, set()
        sessions, self._sessions = self._sessions, set()
        if not drops and not sessions and not adopted:
            done(True)
            return
        known = [self.registry.get(key) for key in sessions]
        moved = sorted((self.lineage[key] for key in adopted), key=lambda one: one.start)
        change = Commit(
            add=tuple(moved),
            drop=tuple(key for key in drops if key not in self.lineage),
            put=tuple(self._standing(session) for session in known if session is not None),
            forget=tuple(key for key in sessions if self.registry.get(key) is None),
        )
        self._leaving_bytes += weight(drops.values())
        took = partial(self._settled, drops, adopted, sessions, done)
        self.submit(change, took, corrupt=corrupt)

    def _settled(
        self,
        drops: dict[bytes, Segment],
        adopted: set[bytes],
        sessions: set[SessionKey],
        done: Done,
        error: Exception | None,
    ) -> None:
        self._leaving_bytes -= weight(drops.values())
        if error is None:
            done(True)
            self.settle()  # what could not be told before can be told now
            return
        if not isinstance(error, CatalogueConflict):  # a write that failed before it was in its way
            self.read_only = text_of(error)
        self._sessions |= sessions
        self._adopted |= {key for key in adopted if self.lineage.resides(key, Tier.COLD)}
        self._drops |= {key: one for key, one in drops.items() if key not in self.lineage}
        done(False)

    def _standing(self, session: Session) -> Session:
        """The session as the home can have it: at the last of its rows that is written."""
        path = self.lineage.path(session.cursor) if session.cursor else Match()
        return evolve(session, cursor=self.durable(path))

    def _ask(self, job: Job, took: Took) -> None:
        self.writer.submit(evolve(job, done=self.expecting(took)))


def weight(segments: Iterable[Segment]) -> int:
    """What segments take in the home."""
    return sum(segment.nbytes + FILE_OVERHEAD for segment in segments)


def text_of(error: Exception) -> str:
    """What an error says, or at least what it is."""
    return str(error) or type(error).__name__
