"""All of agentcache but its edge, over memory adapters: a world that a test can stop anywhere.

`World` is run by hand: the store and reader threads are real, the engine thread is the test itself.
`looped` runs the same parts behind the real engine loop and service.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Self, cast

from attrs import define, field

from agentcache.adapters.memory.clock import ManualClock
from agentcache.adapters.memory.hash_model import hash_spec
from agentcache.adapters.memory.telemetry import RecordingTelemetry
from agentcache.adapters.memory.tokenizer import END, VOCABULARY, MemoryTokenizer
from agentcache.assembly import Assembly, Budgets
from agentcache.conductor import Conductor
from agentcache.domain.notices import Limits
from agentcache.domain.pool import BLOCK_TOKENS
from agentcache.domain.request import Finish, Tier, TurnRequest
from agentcache.domain.segment import Segment
from agentcache.domain.session import Session, SessionKey
from agentcache.domain.spec import CacheSpec
from agentcache.domain.turn import TurnState
from agentcache.fetcher import Fetcher
from agentcache.loop import EngineLoop
from agentcache.preparing import Ask, prepared
from agentcache.roots import Codecs
from agentcache.service import Service
from tests.frail import CountingCodec, Disk, FrailEngine
from tests.talks import Said, Talk

PATIENCE = 60.0  # seconds after which a test that waits for something has failed


@define(eq=False)
class Inbox:
    """Calls for the engine thread: of the store thread first, then of readers, then of clients."""

    _calls: list[tuple[str, Callable[[], None]]] = field(factory=list, init=False)
    _changed: threading.Condition = field(factory=threading.Condition, init=False)

    def __len__(self) -> int:
        return len(self._calls)

    def post(self, call: Callable[[], None]) -> None:
        with self._changed:
            self._calls.append((threading.current_thread().name, call))
            self._changed.notify_all()

    def wait_for(self, calls: int) -> None:
        """Return when so many calls of threads are there."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._of_threads() >= calls, PATIENCE)

    def _of_threads(self) -> int:
        return sum(_rank(thread) < _CLIENT for thread, _ in self._calls)

    def run(self) -> None:
        """Run all calls that are there, and those that come of them."""
        while self._calls:
            with self._changed:
                calls, self._calls = self._calls, []
            for _, call in sorted(calls, key=lambda one: _rank(one[0])):
                call()


_CLIENT = 2


def _rank(thread: str) -> int:
    return next((rank for rank, kind in enumerate(("store", "reader")) if kind in thread), _CLIENT)


@define(eq=False)
class World:
    """A conductor that is run by hand. What is set here counts when it is opened the next time.

    A `steady` world does the same every time: its threads work only while it waits for them.
    """

    limits: Limits = field(factory=Limits)
    spec: CacheSpec = field(factory=hash_spec)
    blocks: int = 64
    disk_cap: int = 1 << 30
    in_flight: int = 1
    end_rate: float = 0.0
    context: int = 8192
    durable: bool = True
    digest: bytes = b"memory"
    disk_floor: int = 0
    free: int = 1 << 40  # bytes of the disk, without what the home takes of it
    idle_ttl: float | None = None
    least_shared: int = 1  # its conversations are short
    steady: bool = False
    canary: bool = False  # codecs are lossless here, so it agrees to the last bit
    disk: Disk = field(factory=Disk)
    clock: ManualClock = field(factory=ManualClock)
    telemetry: RecordingTelemetry = field(factory=RecordingTelemetry)
    codec: CountingCodec = field(factory=CountingCodec)
    other_codecs: tuple[type[CountingCodec], ...] = ()
    engine: FrailEngine = field(init=False)
    conductor: Conductor = field(init=False)
    _inbox: Inbox = field(factory=Inbox, init=False)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.check_drained()
        self.close()

    # -- its life ----------------------------------------------------------------------------

    def assembly(self) -> Assembly:
        row_bytes = self.spec.row_bytes + self.spec.window_row_bytes
        self.codec.reads = self.disk.reads
        others = {one.name: partial(one, self.disk.reads) for one in self.other_codecs}
        return Assembly(
            load_engine=self._load_engine,
            load_tokenizer=MemoryTokenizer,
            codecs=Codecs(self.codec, others),
            segments=self.disk,
            sessions=self.disk,
            clock=self.clock,
            telemetry=self.telemetry,
            budgets=Budgets(
                2 * self.blocks * BLOCK_TOKENS * row_bytes, self.disk_cap, self.disk_floor
            ),
            limits=self.limits,
            durable=self.durable,
            least_shared=self.least_shared,
            free_bytes=lambda: self.free - self.disk.nbytes(),
            idle_ttl=self.idle_ttl,
            canary=self.canary,
        )

    def open(self) -> None:
        self._inbox = Inbox()
        self.conductor = self.assembly()(self._inbox.post)
        if self.steady:
            fetcher = self.conductor.fetcher
            fetcher.close()
            fetcher = Fetcher(fetcher.spec, fetcher.store, threads=1)
            self.conductor.fetcher = self.conductor.compactor.fetcher = fetcher
            self._hold()

    def close(self) -> None:
        if self.steady:
            self._release()
        self.conductor.close()
        old = self.disk
        self.disk = Disk(old.segments, old.sessions.reopened(), old.writes, old.reads)

    def restart(self) -> None:
        """Finish everything, and start anew with what the home holds."""
        self.settle()
        self.close()
        self.open()

    def kill(self) -> None:
        """As after kill -9: what was not committed is gone."""
        self.disk.lose_power()
        self.close()
        self.open()

    def _load_engine(self) -> FrailEngine:
        made = FrailEngine.of(
            digest=self.digest,
            spec=self.spec,
            context=self.context,
            vocabulary=VOCABULARY,
            ends=frozenset({END}),
            end_rate=self.end_rate,
            in_flight=self.in_flight,
        )
        self.engine = cast(FrailEngine, made)
        return self.engine

    def _hold(self) -> None:
        self.disk.writes.acquire()
        self.disk.reads.acquire()

    def _release(self) -> None:
        self.disk.reads.release()
        self.disk.writes.release()

    # -- its rounds --------------------------------------------------------------------------

    def step(self) -> bool:
        """One round, and a wait for the threads where it had nothing to do; False at rest."""
        self._inbox.run()
        if not self.conductor.round():
            if self.conductor.is_idle:
                return False
            self.wait()
        self.conductor.check_integrity()
        return True

    def wait(self) -> None:
        """Wait until a thread has something to tell; in a steady world until all have told it."""
        if not self.steady:
            self._inbox.wait_for(1)
            return
        turns = self.conductor.planner.turns.values()
        fetches = sum(turn.state is TurnState.FETCHING for turn in turns)
        self._release()
        self._inbox.wait_for(self.conductor.keeper.outbox.untold + fetches)
        self._hold()

    def settle(self) -> None:
        """Go on until no turn is left, and everything is written."""
        while self.step():
            pass

    def reach(self, said: Said, state: TurnState) -> None:
        """Go on until the turn is in `state`."""
        while self.conductor.planner.turns[said.number].state is not state:
            assert self.step(), f"the turn never is {state.value}"

    # -- turns -------------------------------------------------------------------------------

    def begin(self, ask: Ask) -> Said:
        """Prepare and queue a turn, as the service does."""
        self.clock.advance(0.001)
        deadline = self.clock.monotonic() + (ask.timeout or PATIENCE)
        said = Said(prepared(ask, self.conductor, deadline, self.clock.wall()))
        said.number = self.conductor.enqueue(said.request, said.events.append)
        return said

    def cancel(self, said: Said) -> None:
        self.conductor.planner.cancel(said.number)

    def cancel_last(self, said: Said) -> None:
        """Stop the turn in the next step, right after all that threads have told by then."""
        self._inbox.post(lambda: self.conductor.planner.cancel(said.number))

    def say(self, talk: Talk, text: str, max_tokens: int = 6, **fields: object) -> Said:
        """A whole turn, whose answer must be right, and which the agent remembers."""
        said = self.begin(talk.ask(text, max_tokens=max_tokens, **fields))
        self.settle()
        self.check_answer(said)
        talk.hear(said.text)
        return said

    def check_answer(self, said: Said) -> None:
        """What was said is what the engine says when it works everything out from nothing."""
        assert (said.text, said.ended.finish, said.ended.completion) == self.truth(said.request)

    def truth(self, request: TurnRequest) -> tuple[str, Finish, int]:
        """The text, the finish and the number of tokens that follow a prompt."""
        planner = self.conductor.planner
        room = min(planner.limits.context, planner.hot.capacity) - len(request.prompt)
        limit = room if request.max_tokens is None else min(request.max_tokens, room)
        known, text, speaks = request.prompt.tokens[:], "", MemoryTokenizer().detokenizer()
        for count in range(1, limit + 1):
            known.extend(self.engine.expected_tokens(known, 1, request.sampling))
            if known[-1] == END:
                return text + speaks.finish(), Finish.STOP, count
            text += speaks.add(known[-1])
            hits = [(text.find(one) + len(one), one) for one in request.stop if one in text]
            if hits:
                end, stop = min(hits, key=lambda hit: (hit[0], -len(hit[1])))
                return text[: end - len(stop)], Finish.STOP, count
        return text + speaks.finish(), Finish.LENGTH, limit

    # -- its tiers ---------------------------------------------------------------------------

    def rest_hot(self) -> None:
        """Let every resting sequence go, so that the next turns start from warm or cold."""
        self.conductor.planner.hot.drop_resting()

    def leave_warm(self) -> None:
        """Let every segment leave RAM that is in the home."""
        keeper = self.conductor.keeper
        cap, keeper.tiers.warm_cap = keeper.tiers.warm_cap, 0
        keeper.tiers.trim()
        keeper.tiers.warm_cap = cap

    def go_cold(self) -> None:
        """Let everything leave RAM."""
        self.rest_hot()
        self.leave_warm()

    # -- looking -----------------------------------------------------------------------------

    def session(self, name: str, tenant: str = "default") -> Session | None:
        """The session of this name, of the model that is served."""
        roots = self.conductor.roots.of(tenant)
        return self.conductor.keeper.registry.named(tenant, roots, name)

    def names(self) -> list[str]:
        return sorted(one.name for one in self.conductor.keeper.registry)

    def stored(self) -> dict[SessionKey, Session]:
        """The sessions as the home has them."""
        return {one.key: one for one in self.disk.sessions.load().sessions}

    def segments(self, tier: Tier) -> list[Segment]:
        lineage = self.conductor.keeper.lineage
        return [lineage[key] for key in lineage._nodes if lineage.resides(key, tier)]

    def holds(self) -> int:
        """How many holds there are on segments."""
        cold = self.conductor.keeper.lineage._tiers[Tier.COLD]
        return sum(cold.order._holds.values())

    def check_drained(self) -> None:
        """At rest everything fits within its caps, and everybody has given everything back."""
        self.settle()
        conductor, hot = self.conductor, self.conductor.planner.hot
        conductor.check_integrity()
        assert (len(conductor.speeches), conductor.planner.turns) == (0, {})
        keeper = conductor.keeper
        assert self.holds() == sum(map(len, keeper.tiers.pins.paths.values()))
        assert keeper.lineage.nbytes(Tier.WARM) <= keeper.tiers.warm_cap
        assert keeper.room.cold_bytes <= keeper.room.cap
        hot.drop_resting()
        assert hot.pool.free == hot.pool.total
        conductor.round()
        assert self.engine.held_bytes() == 0
        self.check_home()

    def check_home(self) -> None:
        """The home holds what is known to be cold, whole; and of it nothing but what it is owed."""
        self.disk.sessions.check_integrity()
        self.disk.segments.check_integrity()
        known = {one.key for one in self.disk.sessions.load().segments}
        cold = {one.key for one in self.segments(Tier.COLD)}
        assert known - self.conductor.keeper.outbox.dropping.keys() == cold
        assert self.disk.segments._kept.keys() - self.disk.orphans <= known


@define(eq=False)
class Looped:
    """A service on a real engine thread, and the world that its parts are from."""

    world: World
    loop: EngineLoop
    service: Service


@contextmanager
def looped(world: World, patience: float = 60.0) -> Iterator[Looped]:
    """Run the parts of `world` (which is not open) until the end; then they have stopped."""
    world.codec.reads = world.disk.reads
    loop = EngineLoop(world.assembly(), world.clock, world.telemetry, debug=True)
    loop.start()
    try:
        yield Looped(world, loop, Service(loop, world.clock, patience))
    finally:
        loop.stop(within=0)
        loop.join()
