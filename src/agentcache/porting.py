"""Agents carried from home to home: out into a file, and in from one.

Blocks, so it is for worker threads; what the engine thread owns is only touched there.
"""

from collections.abc import Callable
from concurrent.futures import Future
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

from attrs import define, evolve, frozen

from agentcache.conductor import Conductor
from agentcache.domain.errors import (
    AgentBusy,
    AgentExists,
    InvalidRequest,
    Unavailable,
    UnknownAgent,
)
from agentcache.domain.path import Match
from agentcache.domain.segment import Segment
from agentcache.domain.session import Cursor, Session, SessionKey
from agentcache.loop import EngineLoop
from agentcache.outbox import Done
from agentcache.ports.payload import Payload
from agentcache.ports.portable import Origin, Portable, PortableFile, PortableFiles
from agentcache.succession import check_name

T = TypeVar("T")


@frozen(eq=False)
class _Lease:
    """An agent whose path stays until it is released, and how its rows are read."""

    portable: Portable
    path: Match
    read: Callable[[int], Payload]


@define(eq=False)
class Porter:
    """Carries agents of the model that `loop` runs, as `files`."""

    _loop: EngineLoop
    _files: PortableFiles

    def export(self, tenant: str, name: str, path: Path) -> int:
        """Write the agent, as it was committed last, to `path`; returns the file's bytes.

        Raises UnknownAgent, Unavailable, SegmentUnusable for rows that cannot be read, OSError.
        """
        lease = self._asked(lambda conductor: _leased(conductor, tenant, name))
        try:
            return self._files.write(path, lease.portable, lease.read)
        finally:
            self._loop.post(lambda: self._loop.conductor.keeper.lineage.release(lease.path.keys))

    def take_in(
        self, tenant: str, path: Path, name: str | None = None, replace: bool = False
    ) -> str:
        """Import the agent in `path`, as `name`; returns how it is called.

        Rows that are here already are not written again. Where it ends in the middle there is no
        agent: the rows that were written are verified ones like any, and the first to be evicted.
        Raises InvalidRequest for a file that does not add up, or is of another model or codec;
        AgentExists unless to `replace`, AgentBusy, Unavailable, OSError.
        """
        with self._files.open(path) as file:
            called = name or file.portable.session.name
            check_name(called)
            arrival = self._asked(
                lambda conductor: _arrival(conductor, tenant, called, file, replace)
            )
            held: tuple[bytes, ...] = ()
            try:
                for index, segment in enumerate(arrival.segments):
                    held = self._bring(arrival, index, segment, file, held)
                self._committed(lambda conductor, done: _settle(conductor, arrival, done))
            finally:
                self._asked(lambda conductor: conductor.keeper.lineage.release(held))
        return called

    def _bring(
        self,
        arrival: "_Arrival",
        index: int,
        segment: Segment,
        file: PortableFile,
        held: tuple[bytes, ...],
    ) -> tuple[bytes, ...]:
        """Have one segment in the home; returns the path that is held in place of `held`."""
        payload = file.read(index)
        self._require_layout(segment, payload)

        def bring(conductor: Conductor, done: Done) -> tuple[bytes, ...]:
            _require_same_root(conductor, arrival)
            conductor.keeper.tiers.accept(segment, payload)
            path = conductor.keeper.lineage.path(Cursor(segment.key, segment.stop))
            conductor.keeper.lineage.hold(path.keys)
            conductor.keeper.lineage.release(held)
            conductor.keeper.write(path, None, done)
            return path.keys

        written: Future[bool] = Future()
        keys = self._asked(lambda conductor: bring(conductor, written.set_result))
        self._require_written(written)
        return keys

    def _require_layout(self, segment: Segment, payload: Payload) -> None:
        """A model that is not loaded (no layer is known) takes rows as they are told to be."""
        keeper = self._loop.conductor.keeper
        if not keeper.spec.layers:
            return
        try:
            keeper.codec.join(keeper.spec, [(payload, len(segment))])
        except ValueError as error:
            raise InvalidRequest(f"its rows are not those of this model: {error}", "file") from None

    def _committed(self, change: Callable[[Conductor, Done], None]) -> None:
        written: Future[bool] = Future()
        self._asked(lambda conductor: change(conductor, written.set_result))
        self._require_written(written)

    def _require_written(self, written: "Future[bool]") -> None:
        if not written.result():
            trouble = self._loop.conductor.keeper.read_only
            raise Unavailable(f"read-only ({trouble or 'the home cannot be written'})")

    def _asked(self, call: Callable[[Conductor], T]) -> T:
        return self._loop.ask(call).result()


@frozen(eq=False)
class _Arrival:
    """What an import will be here: the agent and its path under the root of this home."""

    session: Session
    segments: tuple[Segment, ...]
    replace: bool


def origin_of(conductor: Conductor) -> Origin:
    """What rows of the model that is served mean something to."""
    card, codec = conductor.engine.card, conductor.keeper.codec.name
    return Origin(card.name, card.digest, card.spec.dtype, card.epoch, codec)


# -- out -------------------------------------------------------------------------------------


def _leased(conductor: Conductor, tenant: str, name: str) -> _Lease:
    keeper, key = conductor.keeper, SessionKey(tenant, conductor.root(tenant), name)
    session = keeper.registry.get(key)
    if session is None:
        raise UnknownAgent(name)
    path = _wholly_used(keeper.lineage.path(session.cursor) if session.cursor else Match())
    keeper.lineage.hold(path.keys)
    origin, sources = origin_of(conductor), tuple(step.segment for step in path.steps)
    segments = rooted(origin.root, sources)
    at = Cursor(segments[-1].key, segments[-1].stop) if segments else None
    portable = Portable(
        origin, evolve(session, key=SessionKey("", origin.root, name), cursor=at), segments
    )
    warm = {one.key: payload for one in sources if (payload := keeper.tiers.warm.get(one.key))}
    store = keeper.outbox.writer.segments

    def read(index: int) -> Payload:
        return warm.get(sources[index].key) or store.read(sources[index])

    return _Lease(portable, path, read)


def _wholly_used(path: Match) -> Match:
    """The path as far as all rows of its segments are the agent's own.

    What lies behind the place where a path leaves a segment was taken back, or is another agent's.
    """
    steps = tuple(takewhile(lambda step: step.stop == step.segment.stop, path.steps))
    length = steps[-1].stop if steps else 0
    return Match(steps, length, length)


def rooted(root: bytes, path: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """The same path under `root`, with the keys that it has there."""
    found: list[Segment] = []
    for one in path:
        parent = found[-1].key if found else None
        found.append(Segment.following(root, parent, one.start, one.ids, one.nbytes))
    return tuple(found)


# -- in --------------------------------------------------------------------------------------


def _arrival(
    conductor: Conductor, tenant: str, name: str, file: PortableFile, replace: bool
) -> _Arrival:
    portable = file.portable
    _require_same_model(origin_of(conductor), portable.origin)
    key = SessionKey(tenant, conductor.root(tenant), name)
    _require_free(conductor, key, replace)
    segments = rooted(key.root, portable.segments)
    at = portable.session.cursor
    cursor = Cursor(segments[-1].key, at.row) if at else None
    return _Arrival(evolve(portable.session, key=key, cursor=cursor), segments, replace)


def _settle(conductor: Conductor, arrival: _Arrival, done: Done) -> None:
    """The rows are there: now the agent stands on them."""
    session, keeper = arrival.session, conductor.keeper
    _require_same_root(conductor, arrival)
    _require_free(conductor, session.key, arrival.replace)
    if (resting := conductor.planner.hot.resting(session.key)) is not None:
        conductor.planner.hot.drop(resting)
    before = keeper.registry.get(session.key)
    now = evolve(session, generation=before.generation + 1 if before else 0)
    path = keeper.lineage.path(now.cursor) if now.cursor else Match()
    keeper.write(path, now, done)


def _require_free(conductor: Conductor, key: SessionKey, replace: bool) -> None:
    requests = (turn.request for turn in conductor.planner.turns.values())
    names = {(one.root, one.identity.name) for one in requests if one.identity.exclusive}
    if (key.root, key.name) in names:
        raise AgentBusy(key.name)
    if conductor.keeper.registry.get(key) is not None and not replace:
        raise AgentExists(key.name)


def _require_same_root(conductor: Conductor, arrival: _Arrival) -> None:
    key = arrival.session.key
    if conductor.root(key.tenant) != key.root:
        raise Unavailable("swapping")


def _require_same_model(here: Origin, there: Origin) -> None:
    if here.digest != there.digest:
        raise InvalidRequest(
            f"the agent is one of the model {there.model!r} (digest {there.digest.hex()[:16]}), "
            f"this is {here.model!r} (digest {here.digest.hex()[:16]}): import it with that model",
            "file",
        )
    if here.codec != there.codec:
        problem = f"its rows are encoded as {there.codec!r}, here they are as {here.codec!r}"
        raise InvalidRequest(f"{problem}: import it with --codec {there.codec}", "file")
    if (here.dtype, here.epoch) != (there.dtype, there.epoch):
        problem = f"its rows are {there.dtype} of epoch {there.epoch}"
        raise InvalidRequest(f"{problem}, here they are {here.dtype} of {here.epoch}", "file")
