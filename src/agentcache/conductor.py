"""What one round of the engine thread does: plan, carry out, collect, apply, tell.

Nothing here knows threads: whoever calls `round` again and again is the engine thread.
"""

import logging
from collections.abc import Callable
from functools import partial

from attrs import define, evolve, field

from agentcache.compactor import Compactor
from agentcache.domain.conversation import Outcome
from agentcache.domain.errors import (
    AgentCacheError,
    SegmentCorrupt,
    TurnCancelled,
    Unavailable,
)
from agentcache.domain.events import Ended
from agentcache.domain.notices import Compared, Preempted, Token
from agentcache.domain.path import Match
from agentcache.domain.plan import (
    Park,
    Plan,
    Resize,
    Start,
)
from agentcache.domain.planner import Planner
from agentcache.domain.pool import BLOCK_TOKENS
from agentcache.domain.request import Finish, Tier, TurnRequest
from agentcache.domain.session import Session, SessionKey
from agentcache.domain.spans import Span
from agentcache.domain.trace import Trace
from agentcache.domain.turn import Turn
from agentcache.expiry import Expiry
from agentcache.fetcher import Fetched, Fetcher
from agentcache.keeper import Keeper
from agentcache.outbox import Post
from agentcache.ports.clock import Clock
from agentcache.ports.engine import Engine
from agentcache.ports.grammar import Grammars
from agentcache.ports.telemetry import Telemetry
from agentcache.ports.tokenizer import Tokenizer
from agentcache.rendering import PromptBuilder
from agentcache.roots import Roots
from agentcache.speech import Emit, Speech
from agentcache.speeches import Speeches
from agentcache.steps import Steps, said_of
from agentcache.succession import on_a_fork, session_key, successor

log = logging.getLogger(__name__)
_DOUBT = "restored with the others of its path, it does not say what it said before"


@define(eq=False)
class Conductor:
    """Drives the planner, the engine, the fetcher and the keeper for one model.

    `roots` tell whose rows are whose, and how they are kept. With `durable`, a turn's
    Ended is told after the commit of what it left behind; else before.
    """

    engine: Engine
    planner: Planner
    keeper: Keeper
    fetcher: Fetcher
    tokenizer: Tokenizer
    builder: PromptBuilder
    clock: Clock
    telemetry: Telemetry
    post: Post
    roots: Roots
    durable: bool = True
    idle_ttl: float | None = None
    grammars: Grammars | None = None
    compactor: Compactor = field(init=False)
    expiry: Expiry = field(init=False)
    speeches: Speeches = field(init=False)
    _steps: Steps = field(init=False)

    @speeches.default
    def _no_speeches(self) -> Speeches:
        return Speeches(self.planner, self.builder, self.telemetry)

    @_steps.default
    def _no_steps(self) -> Steps:
        return Steps(self.engine, self.clock, self.telemetry)

    @expiry.default
    def _new_expiry(self) -> Expiry:
        return Expiry(self.keeper, self.clock, self.idle_ttl)

    @compactor.default
    def _new_compactor(self) -> Compactor:
        return Compactor(self.keeper, self.fetcher, self.roots.codec)

    def enqueue(self, request: TurnRequest, emit: Emit) -> int:
        """Let a turn wait for its place; `emit` is told what becomes of it.

        Raises what `Planner.enqueue` raises, InvalidRequest for an empty stop sequence, and
        Unavailable for a turn that was prepared for another model.
        """
        if request.root not in self.roots.of(request.identity.tenant):
            raise Unavailable("swapping")
        if request.when_busy == "fork" and self.planner.is_busy(request.identity):
            request = on_a_fork(request)
        return self.speeches.enqueue(request, emit, self.clock.monotonic())

    def round(self) -> bool:
        """Do what can be done now; False when there is nothing to do until something comes in."""
        if self.planner.notices:
            self._tell()  # who came to its place since, and may have been cancelled since, too
        self.compactor.work(quiet=not self.planner.turns)
        if not self.planner.turns:
            self.expiry.work()
        plan = self.planner.plan(self.clock.monotonic())
        self._carry_out(plan)
        if self.planner.notices:
            self._tell()
        if plan.step is None and not plan.idle:  # the next plan may have a step
            return True
        flying = len(self._steps.flying)
        if not flying or (plan.step is not None and flying < self.planner.limits.in_flight):
            return not plan.idle or (not self.planner.turns and self.engine.rest())
        self.planner.apply(*self._steps.collect())
        self._tell()
        return True

    @property
    def is_idle(self) -> bool:
        """Whether no turn waits or runs, and nothing is being written."""
        return not (self.planner.turns or self._steps.flying or self.keeper.is_writing)

    def levels(self) -> dict[str, float]:
        """The gauges, as they are now."""
        lineage, pool = self.keeper.lineage, self.planner.hot.pool
        return {
            "queued": self.planner.waiting,
            "running": self.planner.running,
            "sessions": len(self.keeper.registry),
            "pool_blocks_used": pool.total - pool.free,
            "pool_blocks_free": pool.free,
            "hot_bytes": self.engine.held_bytes(),
            "warm_bytes": lineage.nbytes(Tier.WARM),
            "cold_bytes": self.keeper.room.cold_bytes,
            "write_queue_bytes": self.keeper.outbox.writer.waiting_bytes,
            "read_only": float(self.keeper.read_only is not None),
        }

    def cut_all(self, why: AgentCacheError) -> None:
        """Stop every turn, wherever it is; who waits for it is told `why`."""
        for number in tuple(self.planner.turns):
            self.planner.cancel(number, why)

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every owner of state agrees with itself and the others."""
        self.planner.check_integrity()
        self.keeper.tiers.check_integrity()
        self.keeper.room.check_integrity()

    def dismiss(self) -> None:
        """Drop the model, and nothing else: what the keeper keeps can serve another one."""
        try:
            self.fetcher.close()
        finally:
            self.engine.close()

    def close(self) -> None:
        """Finish what is being read and written, and drop the model."""
        self.fetcher.close()
        self.keeper.outbox.writer.close()
        self.engine.close()

    # -- carrying out ------------------------------------------------------------------------

    def _carry_out(self, plan: Plan) -> None:
        for park in plan.park:
            self._keep(park)
        for sequence in plan.drop:
            self.engine.drop(sequence)
        if self.planner.hot.gave_way:
            self._count_evicted()
        for grow in plan.grow:
            self._guarded(grow.turn, partial(self.engine.grow, grow.sequence, grow.capacity))
        for start in plan.start:
            self._guarded(start.turn, partial(self._begin, start))
        for resize in plan.resize:
            self._guarded(resize.turn, partial(self._resize, resize))
        if plan.step is not None:
            self._steps.submit(plan.step)

    def _guarded(self, turn: int, action: Callable[[], None]) -> bool:
        """Whether `action` went well; a failure ends this turn alone."""
        try:
            action()
        except Exception as error:
            log.exception("turn %d could not be prepared", turn)
            self.planner.fail(turn, said_of(error))
            return False
        return True

    def _begin(self, start: Start) -> None:
        rows = self.engine.start(start.sequence, start.capacity, start.restore)
        if start.restore:
            fetched = partial(self._fetched, start, self.clock.monotonic())
            self.fetcher.fetch(
                self.roots.codec(start.steps[0].segment.root),
                start.steps,
                self.keeper.tiers.warm,
                rows,
                lambda found: self.post(partial(fetched, found)),
            )

    def _resize(self, resize: Resize) -> None:
        began = self.clock.monotonic()
        self.engine.trim(resize.sequence, resize.length)
        self.engine.grow(resize.sequence, resize.capacity)
        self.telemetry.restored(Tier.HOT, resize.length, 0, self.clock.monotonic() - began)

    def _fetched(self, start: Start, began: float, found: Fetched) -> None:
        if found.read:
            self.telemetry.loaded(len(found.read), sum(one.nbytes for _, one in found.read))
        self.keeper.tiers.promote(found.read)
        if found.failed:
            self.keeper.tiers.discard(found.failed)
            self.planner.fetch_failed(start.turn)
        elif self._guarded(start.turn, lambda: self.engine.adopt(start.sequence, start.restore)):
            self._count_restored(start, self.clock.monotonic() - began)
            self.planner.fetched(start.turn)
        self.keeper.tiers.trim()  # the lease is over

    # -- keeping -----------------------------------------------------------------------------

    def _keep(self, park: Park) -> None:
        path = self._kept(park)
        if park.turn is None:
            self.keeper.write(path, None)
            return
        turn = self.planner.turns[park.turn]
        trace = self._trace(turn, park.sequence, path)
        speech, spans = self.speeches.take(turn)
        spans, ended = spans or _prefilled(turn), _ended(turn, speech)
        request = turn.request
        if spans is None or not request.store:
            owner = _heir(request) if request.store else None
            self.planner.parked(turn.number, owner, self.clock.monotonic())
            if request.store:
                self.keeper.write(path, None)
            speech.emit(_cut_short(turn) or ended)
            return
        key = session_key(request, self.keeper.registry)
        before = self.keeper.registry.get(key)
        left = None if before else self._leaves(request, key)
        before = before or (left and evolve(left, key=key))
        now, answer = self.clock.wall(), speech.text if speech.sampled else None
        outcome = _outcome(ended, request, now)
        session = successor(
            *(key, before, request, spans, path.cursor, now, answer, turn.cached, trace, outcome),
            cut=ended.cut,
        )
        self.planner.parked(turn.number, key, self.clock.monotonic())
        tell = partial(speech.emit, ended)
        self.keeper.write(
            path, session, partial(_written, self.keeper, left, tell if self.durable else None)
        )
        if not self.durable:
            tell()

    def _leaves(self, request: TurnRequest, key: SessionKey) -> Session | None:
        """The agent under the codec that it leaves; it stays there until it is safe elsewhere."""
        roots = self.roots.of(key.tenant) if request.identity.exclusive else ()
        left = self.keeper.registry.named(key.tenant, roots, key.name)
        if left is not None and (resting := self.planner.hot.resting(left.key)) is not None:
            self.planner.hot.drop(resting)
        return left

    def _kept(self, park: Park) -> Match:
        """The path to the rows of `park`; as far as there is one, if they cannot be encoded."""
        try:
            return self.keeper.keep(self.engine, park, self.roots.codec(park.root))
        except Exception:
            log.exception("the rows of sequence %d could not be kept", park.sequence)
            return self.keeper.lineage.match(park.root, park.ids)

    def _trace(self, turn: Turn, sequence: int, path: Match) -> Trace | None:
        """What the last rows of the path said, if that is to be compared one day."""
        tops = self.engine.likeliest(sequence, path.length) if turn.traced else ()
        return Trace(path.length, tops) if tops else None

    def _count_restored(self, start: Start, seconds: float) -> None:
        tier = self.planner.turns[start.turn].tier
        nbytes = sum(step.segment.nbytes for step in start.steps)
        self.telemetry.restored(tier, start.restore, nbytes, seconds)

    def _count_evicted(self) -> None:
        """Resting sequences that gave way to others."""
        hot, spec = self.planner.hot, self.engine.card.spec
        row_bytes = spec.row_bytes + spec.window_row_bytes
        nbytes = hot.blocks_given * BLOCK_TOKENS * row_bytes
        self.telemetry.evicted(Tier.HOT, hot.gave_way, nbytes)
        hot.gave_way = hot.blocks_given = 0

    # -- telling -----------------------------------------------------------------------------

    def _tell(self) -> None:
        now = self.clock.monotonic()
        for notice in self.planner.take_notices():
            if isinstance(notice, Token):
                self.speeches.say(notice, now)
            elif isinstance(notice, Compared):
                self._compared(notice)
            elif isinstance(notice, Preempted):
                self.telemetry.preempted()
            else:
                self.speeches.hear(notice)

    def _compared(self, notice: Compared) -> None:
        self.telemetry.compared(agreed=not notice.doubted)
        self.keeper.tiers.discard((one, SegmentCorrupt(one.key, _DOUBT)) for one in notice.doubted)


def _written(
    keeper: Keeper, left: Session | None, tell: Callable[[], None] | None, durable: bool
) -> None:
    """A turn was; nothing here holds the model, which may be gone before the next write."""
    if tell is not None:
        tell()
    if durable and left is not None and keeper.registry.get(left.key) is left:
        keeper.forget(left.key)


def _heir(request: TurnRequest) -> SessionKey | None:
    """Whose retry may go on from the rows of a turn that was not completed."""
    identity = request.identity
    if identity.exclusive and identity.name is not None:
        return SessionKey(identity.tenant, request.root, identity.name)
    return request.session


def _prefilled(turn: Turn) -> tuple[Span, ...] | None:
    """What an agent remembers of a turn that was to be prefilled only, and was."""
    done = turn.request.max_tokens == 0 and turn.finish is Finish.LENGTH
    return turn.request.prompt.spans if done and turn.request.identity.exclusive else None


def _cut_short(turn: Turn) -> AgentCacheError | None:
    """Why the turn was not completed, where that was not its client's doing."""
    return None if isinstance(turn.cut, TurnCancelled) else turn.cut


def _ended(turn: Turn, speech: Speech) -> Ended:
    return Ended(
        turn.finish or Finish.FAILED,
        len(turn.request.prompt),
        turn.cached,
        len(speech.sampled),
        speech.stop,
        turn.problem,
    )


def _outcome(ended: Ended, request: TurnRequest, now: float) -> Outcome:
    finish, asked = ended.finish.value, request.asked
    return Outcome(finish, asked, now, ended.prompt, ended.cached, ended.completion)
