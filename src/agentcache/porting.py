"""Agents carried from home to home: out into a file, and in from one.

Blocks, so it is for worker threads; what the engine thread owns is only touched there.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TypeVar

from attrs import define, evolve, frozen

from agentcache.conductor import Conductor
from agentcache.departure import Departure, rooted
from agentcache.domain.errors import (
    AgentBusy,
    AgentExists,
    InvalidRequest,
    SegmentUnusable,
    Unavailable,
    UnknownAgent,
)
from agentcache.domain.path import Match
from agentcache.domain.request import Identity
from agentcache.domain.segment import Segment
from agentcache.domain.session import Cursor, Session, SessionKey
from agentcache.keeper import Keeper
from agentcache.loop import EngineLoop
from agentcache.outbox import Done
from agentcache.ports.codec import Codec
from agentcache.ports.payload import Payload
from agentcache.ports.portable import Origin, PortableFile, PortableFiles
from agentcache.succession import check_name

T = TypeVar("T")


@define(eq=False)
class Porter:
    """Carries agents of the model that `loop` runs, as `files`."""

    _loop: EngineLoop
    _files: PortableFiles

    def export(self, tenant: str, name: str, path: Path) -> int:
        """Write the agent, as it was committed last, to `path`; returns the file's bytes.

        Raises UnknownAgent, StoreFull, OSError; Unavailable also for rows that turn out to be
        damaged: they are misses from then on, and the next export goes as far as what is before.
        """
        lease = self._asked(lambda conductor: _leased(conductor, tenant, name))
        try:
            return self._files.write(path, lease.portable(), lease.read)
        except SegmentUnusable as error:
            self._asked(partial(_discard, path=lease.path, error=error))
            raise Unavailable("some of its rows were damaged, and are given up now") from error
        finally:
            self._loop.post(lambda: self._loop.conductor.keeper.lineage.release(lease.path.keys))

    def take_in(
        self, tenant: str, path: Path, name: str | None = None, replace: bool = False
    ) -> str:
        """Import the agent in `path`, as `name`; returns how it is called.

        Rows that are here already are not written again. Where it ends in the middle there is no
        agent: the rows that were written are verified ones like any, and the first to be evicted.
        Its rows keep their codec. Raises InvalidRequest for a file that does not add up, is of
        another model, or has a codec that there is not; AgentExists unless to `replace`, AgentBusy,
        Unavailable, OSError.
        """
        with self._files.open(path) as file:
            called = name or file.portable.session.name
            check_name(called)
            arrival = self._asked(
                lambda conductor: _arrival(conductor, tenant, called, file, replace)
            )
            held = _Held()
            try:
                for segment, payload in self._payloads(arrival, file):
                    self._bring(arrival, segment, payload, held)
                self._committed(lambda conductor, done: _settle(conductor, arrival, done))
            finally:
                self._asked(lambda conductor: held.move(conductor, ()))
        return called

    def _payloads(
        self, arrival: "_Arrival", file: PortableFile
    ) -> Iterator[tuple[Segment, Payload]]:
        for index, segment in enumerate(arrival.segments):
            payload = file.read(index)
            self._require_layout(arrival, segment, payload)
            yield segment, payload

    def _bring(
        self, arrival: "_Arrival", segment: Segment, payload: Payload, held: "_Held"
    ) -> None:
        """Have one segment in the home, and its path held."""

        def bring(conductor: Conductor, done: Done) -> None:
            _require_same_root(conductor, arrival)
            _require_rows(conductor, segment.parent)
            conductor.keeper.tiers.accept(segment, payload)
            path = conductor.keeper.lineage.path(Cursor(segment.key, segment.stop))
            held.move(conductor, path.keys)
            conductor.keeper.write(path, None, done)

        self._committed(bring)

    def _require_layout(self, arrival: "_Arrival", segment: Segment, payload: Payload) -> None:
        """A model that is not loaded (no layer is known) takes rows as they are told to be."""
        keeper = self._loop.conductor.keeper
        if not keeper.spec.layers:
            return
        try:
            arrival.codec.join(keeper.spec, [(payload, len(segment))])
        except ValueError as error:
            raise InvalidRequest(f"its rows are not those of this model: {error}", "file") from None

    def _committed(self, change: Callable[[Conductor, Done], None]) -> None:
        written: Future[bool] = Future()
        self._asked(lambda conductor: change(conductor, written.set_result))
        if not written.result():
            trouble = self._loop.conductor.keeper.read_only
            raise Unavailable(f"read-only ({trouble or 'the home cannot be written'})")

    def _asked(self, call: Callable[[Conductor], T]) -> T:
        return self._loop.ask(call).result()


@define(eq=False)
class _Held:
    """The path that an import has brought so far, which nobody may evict. Changes on the engine
    thread alone."""

    keys: tuple[bytes, ...] = ()

    def move(self, conductor: Conductor, keys: tuple[bytes, ...]) -> None:
        """Hold `keys` instead."""
        conductor.keeper.lineage.hold(keys)
        conductor.keeper.lineage.release(self.keys)
        self.keys = keys


@frozen(eq=False)
class _Arrival:
    """What an import will be here: the agent and its path under the root of this home."""

    session: Session
    codec: Codec
    segments: tuple[Segment, ...]
    replace: bool


def origin_of(conductor: Conductor, codec: str) -> Origin:
    """What rows of the model that is served mean something to, that are kept with `codec`."""
    card = conductor.engine.card
    return Origin(card.name, card.digest, card.spec.dtype, card.epoch, codec)


# -- out -------------------------------------------------------------------------------------


def _leased(conductor: Conductor, tenant: str, name: str) -> Departure:
    keeper, roots = conductor.keeper, conductor.roots
    session = keeper.registry.named(tenant, roots.of(tenant), name)
    if session is None:
        raise UnknownAgent(name)
    path = keeper.lineage.path(session.cursor) if session.cursor else Match()
    keeper.lineage.hold(path.keys)
    store, known = keeper.outbox.writer.segments, keeper.tiers.warm
    warm = {key: known[key] for key in path.keys if key in known}

    def stored(segment: Segment) -> Payload:
        return warm.get(segment.key) or store.read(segment)

    codec = roots.codec(session.key.root)
    origin = origin_of(conductor, codec.name)
    return Departure(origin, session, path, keeper.spec, codec, stored)


def _discard(conductor: Conductor, path: Match, error: SegmentUnusable) -> None:
    failed = (step.segment for step in path.steps if step.segment.key == error.key)
    conductor.keeper.tiers.discard([(segment, error) for segment in failed])


# -- in --------------------------------------------------------------------------------------


def _arrival(
    conductor: Conductor, tenant: str, name: str, file: PortableFile, replace: bool
) -> _Arrival:
    portable, codec = file.portable, file.portable.origin.codec
    _require_same_model(origin_of(conductor, codec), portable.origin)
    key = SessionKey(tenant, conductor.roots.root(tenant, codec), name)
    _require_free(conductor, key, replace)
    segments = rooted(key.root, portable.segments)
    at = portable.session.cursor
    cursor = Cursor(segments[-1].key, at.row) if at else None
    session = evolve(portable.session, key=key, cursor=cursor)
    return _Arrival(session, conductor.roots.codec(key.root), segments, replace)


def _settle(conductor: Conductor, arrival: _Arrival, done: Done) -> None:
    """The rows are there: now the agent stands on them."""
    session, keeper = arrival.session, conductor.keeper
    _require_same_root(conductor, arrival)
    _require_free(conductor, session.key, arrival.replace)
    registry, key = keeper.registry, session.key
    known = registry.all_named(key.tenant, conductor.roots.of(key.tenant), key.name)
    for resting in filter(None, (conductor.planner.hot.resting(one.key) for one in known)):
        conductor.planner.hot.drop(resting)
    before = registry.get(key)
    now = evolve(session, generation=before.generation + 1 if before else 0)
    _require_rows(conductor, now.cursor.key if now.cursor else None)
    path = keeper.lineage.path(now.cursor) if now.cursor else Match()
    others = tuple(one.key for one in known if one.key != key)
    keeper.write(path, now, partial(_written, keeper, others, done))


def _written(keeper: Keeper, others: tuple[SessionKey, ...], done: Done, durable: bool) -> None:
    """What it takes the place of under another codec goes once it is there itself."""
    if not durable or not others:
        done(durable)
        return
    for other in others[1:]:
        keeper.forget(other)
    if keeper.forget(others[0], done) is None:
        done(True)


def _require_free(conductor: Conductor, key: SessionKey, replace: bool) -> None:
    if conductor.planner.is_busy(Identity(key.name, key.tenant, exclusive=True)):
        raise AgentBusy(key.name)
    roots = conductor.roots.of(key.tenant)
    if conductor.keeper.registry.named(key.tenant, roots, key.name) is not None and not replace:
        raise AgentExists(key.name)


def _require_same_root(conductor: Conductor, arrival: _Arrival) -> None:
    key = arrival.session.key
    if key.root not in conductor.roots.of(key.tenant):
        raise Unavailable("swapping")


def _require_rows(conductor: Conductor, key: bytes | None) -> None:
    """What was brought may have turned out to be unusable since."""
    if key is not None and key not in conductor.keeper.lineage:
        raise Unavailable("setting aside rows of it that cannot be read")


def _require_same_model(here: Origin, there: Origin) -> None:
    if here.digest != there.digest:
        raise InvalidRequest(
            f"the agent is one of the model {there.model!r} (digest {there.digest.hex()[:16]}), "
            f"this is {here.model!r} (digest {here.digest.hex()[:16]}): import it with that model",
            "file",
        )
    if (here.dtype, here.epoch) != (there.dtype, there.epoch):
        problem = f"its rows are {there.dtype} of epoch {there.epoch}"
        raise InvalidRequest(f"{problem}, here they are {here.dtype} of {here.epoch}", "file")
