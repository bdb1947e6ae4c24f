"""The planner: which turns have a place, and what the engine does next. A function of its state.

A turn is queued -> fetching -> ready -> prefilling -> decoding -> parking -> done. Whoever drives
the planner calls `plan`, carries the plan out, tells what came of it (`fetched`, `apply`, `parked`)
and takes the notices that are due (`take_notices`).
"""

from attrs import define, field

from agentcache.domain.canaries import Canaries
from agentcache.domain.errors import AgentCacheError, IntegrityError, TurnCancelled
from agentcache.domain.flights import Flights
from agentcache.domain.growing import is_full, make_room
from agentcache.domain.hot import HotTier
from agentcache.domain.lineage import Lineage
from agentcache.domain.notices import Limits, Notice, Placed, Preempted, Refused, Stuck, Token
from agentcache.domain.pacing import Pace
from agentcache.domain.parking import due_parks, is_exportable, park_to
from agentcache.domain.patience import Patience
from agentcache.domain.placing import place, prefix_is_coming
from agentcache.domain.plan import (
    Found,
    Park,
    Plan,
    Resize,
    Sampled,
    SequenceFailed,
    Start,
    StepPlan,
    StepResult,
)
from agentcache.domain.registry import SessionRegistry
from agentcache.domain.request import Finish, Identity, Miss, TurnRequest
from agentcache.domain.session import SessionKey
from agentcache.domain.stepping import next_step
from agentcache.domain.turn import Sequence, Turn, TurnState
from agentcache.domain.waiting import AgentOrder, TurnQueue

CLIENT_LEFT = TurnCancelled()


@define(eq=False)
class Planner:
    """Owns the queue and the running turns; asks the hot tier for memory, the lineage for rows,
    the registry for where sessions stand.

    Who waits is looked at only when something happened that may let somebody start: a step costs
    the same however many wait. Who runs is looked at only when something happened to one of them:
    where all decode, most steps are the one before once more. `notices` are those that are due.
    """

    lineage: Lineage
    hot: HotTier
    registry: SessionRegistry = field(factory=SessionRegistry)
    ends: frozenset[int] = frozenset()
    limits: Limits = field(factory=Limits)
    canaries: Canaries = field(factory=Canaries)
    turns: dict[int, Turn] = field(factory=dict, init=False)
    pace: Pace = field(init=False)
    notices: list[Notice] = field(factory=list, init=False)
    _queue: TurnQueue = field(factory=TurnQueue, init=False)
    _agents: AgentOrder = field(factory=AgentOrder, init=False)
    _running: dict[int, Turn] = field(factory=dict, init=False)
    _flights: Flights = field(init=False)
    _numbers: int = field(default=0, init=False)
    _patience: Patience = field(factory=Patience, init=False)
    _stirred: bool = field(default=False, init=False)

    @pace.default
    def _new_pace(self) -> Pace:
        return Pace(self.limits.step_seconds)

    @_flights.default
    def _no_flights(self) -> Flights:
        return Flights(self.limits.in_flight)

    @property
    def waiting(self) -> int:
        """Turns that wait for a place."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Turns that have a place."""
        return len(self._running)

    @property
    def flying(self) -> int:
        """Steps that were planned and whose result is not applied yet."""
        return len(self._flights)

    def is_busy(self, identity: Identity) -> bool:
        """Whether a turn of this exclusive agent is not over."""
        return identity in self._agents

    # -- what comes in -----------------------------------------------------------------------

    def enqueue(self, request: TurnRequest, now: float) -> Turn:
        """Let a new turn wait for its place. Raises PromptTooLong, InvalidRequest, Overloaded."""
        most, spec = min(self.limits.context, self.hot.capacity), self.lineage.spec
        turn = Turn.of(self._numbers + 1, request, now, most, spec)
        self.check_queue()
        self._numbers += 1
        turn.traced = self.canaries.traces(request, spec)
        self.turns[turn.number] = turn
        self._agents.add(turn)
        self._wait(turn)
        return turn

    def check_queue(self) -> None:
        """Raise Overloaded while as many turns wait as may. For any thread."""
        if (waiting := len(self._queue)) >= self.limits.queue:
            raise self._patience.full(waiting, len(self.turns) / self.limits.batch)

    def fetched(self, number: int) -> None:
        """What the turn's `Start` asked for is restored."""
        turn = self._end_fetch(number)
        if turn is not None:
            turn.live.rows = turn.live.planned = turn.live.kept = turn.restored
            self._place(turn)

    def fetch_failed(self, number: int) -> None:
        """What `Start` asked for cannot be used: the turn looks again for what can."""
        turn = self._end_fetch(number)
        if turn is not None:
            turn.miss = Miss.CORRUPT
            self._withdraw(turn)
            self._wait(turn)

    def fail(self, number: int, problem: str) -> None:
        """The turn's `Grow`, `Start` or `Resize` could not be carried out."""
        turn = self._running[number]
        self.lineage.release(turn.leased)
        turn.leased = ()
        turn.canary = None
        self._end(turn, Finish.FAILED, problem)

    def apply(self, result: StepResult, seconds: float | None = None) -> None:
        """Take the result of the oldest step that is not applied yet, which took `seconds`."""
        plan = self._flights.land(result.number)
        if seconds is not None:
            chunks = [len(chunk.ids) for chunk in plan.prefill]
            self.pace.learn(chunks, len(plan.decode), seconds)
        steady = None if self._stirred else self._flights.steady
        if steady is None or not steady.is_of(plan, result):
            self._apply(plan, result)
            return
        for (turn, sequence), sampled in zip(steady.members, result.sampled, strict=True):
            assert sampled.sequence == sequence.number, "tokens came in another order than planned"
            sequence.flying -= 1
            sequence.advance(1)
            self._take(turn, sequence, sampled)

    def finish(self, number: int, finish: Finish, keep: int | None = None) -> None:
        """The turn's text is complete. Only its first `keep` sampled tokens are remembered."""
        turn = self.turns[number]
        if turn.finish in (Finish.CANCELLED, Finish.FAILED):
            return
        self._end(turn, finish)
        if keep is not None:
            turn.live.cut_to(len(turn.request.prompt) + keep)

    def cancel(self, number: int, why: AgentCacheError = CLIENT_LEFT) -> None:
        """Stop a turn wherever it is, because of `why`. What it computed is kept."""
        turn = self.turns.get(number)
        if turn is None or turn.finish is not None:
            return
        turn.cut = why
        if turn.state is TurnState.QUEUED:
            self._queue.remove(turn)
            self._refuse(turn, why)
        elif turn.state is TurnState.FETCHING:
            turn.finish = Finish.CANCELLED
        else:
            self._admit(turn)
            self._end(turn, Finish.CANCELLED)

    def parked(self, number: int, owner: SessionKey | None, now: float) -> None:
        """The turn's rows are kept: it is done. The next turn of `owner` may go on from it."""
        turn = self._running.pop(number)
        sequence = turn.live
        turn.sequence = None
        self._forget(turn)
        self._patience.learn(now - turn.placed_at)
        usable = turn.finish is not Finish.FAILED and is_exportable(sequence, self.lineage.spec)
        self.hot.rest(sequence, owner if usable else None)

    def refuse_waiting(self, error: AgentCacheError) -> None:
        """Refuse every turn that waits for its first place; who had one before gets it back."""
        for turn in [one for one in self._queue if not one.admitted]:
            self._queue.remove(turn)
            self._refuse(turn, error)

    # -- what goes out -----------------------------------------------------------------------

    def plan(self, now: float) -> Plan:
        """All that shall be done now, before the next call."""
        if (step := self._once_more(now)) is not None:
            return Plan(step=step)
        self._flights.steady = None
        if parks := due_parks(self._running.values(), self.lineage.spec):
            self._stirred = True  # somebody may wait for just these rows, and find them kept
            return Plan(parks, self.hot.take_dropped())
        grows, preempted = make_room(self._running, self.hot, self.limits.reserve, self._preempt)
        stirred, self._stirred = self._stirred, bool(preempted) and self._stirred
        starts, resizes = self._start(now) if stirred and not preempted else ((), ())
        self._expire(now)  # who finds a place just now is not late
        step = None if grows or preempted or starts or resizes else self._step()
        return Plan(preempted, self.hot.take_dropped(), grows, starts, resizes, step)

    def take_notices(self) -> tuple[Notice, ...]:
        """What happened to turns since the last call, in order."""
        notices, self.notices = tuple(self.notices), []
        return notices

    def next_deadline(self) -> float | None:
        """When the first of the waiting turns must be refused; None when none waits."""
        return self._queue.next_deadline()

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every turn has one place, and every place its turn."""
        self._queue.check_integrity()
        self._agents.check_integrity(self.turns)
        self.hot.check_integrity()
        self.lineage.check_integrity()
        if {turn.number for turn in self._queue} | set(self._running) != set(self.turns):
            raise IntegrityError("a turn is neither waiting nor running")
        if len(self._queue) + len(self._running) != len(self.turns):
            raise IntegrityError("a turn is waiting and running")
        self.hot.check_awake([turn.live.number for turn in self._running.values()])
        self._flights.check_integrity(self.hot)
        if self._flights.steady is not None and not self._stirred:
            self._flights.steady.check_integrity(self._running.values())
        if len(self._running) > self.limits.batch or len(self._flights) > self.limits.in_flight:
            raise IntegrityError("more is going on than the limits allow")

    # -- the life of a turn ------------------------------------------------------------------

    def _apply(self, plan: StepPlan, result: StepResult) -> None:
        failed = {one.sequence: one for one in result.failed}
        sampled = {one.sequence: one for one in result.sampled}
        retold = {one.sequence: one.found for one in result.retold}
        turns = {turn.live.number: turn for turn in self._running.values()}
        for number, count in plan.rows.items():
            turn = turns[number]
            turn.live.flying -= 1
            if turn.canary is not None and not self._compare(turn, retold.get(number)):
                continue
            if number in failed and turn.finish is None:
                self._fail(turn, failed[number])
            if number in failed or turn.finish is Finish.FAILED:
                continue
            turn.live.advance(count)
            if number in sampled and turn.finish is None:
                self._take(turn, turn.live, sampled[number])
            elif turn.finish is None and turn.is_prefilled:
                self._end(turn, Finish.LENGTH)

    def _place(self, turn: Turn) -> None:
        turn.state = TurnState.READY
        self._stirred = True  # nobody waits for rows that are restored
        if turn.is_prefilled:
            self._end(turn, Finish.LENGTH)
        if turn.canary is None:
            self._admit(turn)

    def _admit(self, turn: Turn) -> None:
        if not turn.admitted:
            self.notices.append(Placed(turn.number, turn.admit()))

    def _compare(self, turn: Turn, found: Found | None) -> bool:
        """Whether `turn` goes on: not if what was restored for it says something else than before.

        Where nothing was `found` out the turn has failed, which its result tells.
        """
        compared = self.canaries.compare(turn, found)
        if compared is not None:
            self.notices.append(compared)
        if compared is None or not compared.doubted:
            self._admit(turn)
            return True
        self.hot.doubt(compared.doubted)
        if turn.finish is None:
            turn.miss = Miss.CORRUPT
            self._withdraw(turn)
            self._wait(turn)
        return False

    def _take(self, turn: Turn, sequence: Sequence, sampled: Sampled) -> None:
        token, end = sampled.token, sampled.token in self.ends
        turn.sampled.append(token)
        sequence.ids.append(token)
        self.notices.append(Token(turn.number, token, end, sampled.logprobs))
        if end:
            self._end(turn, Finish.STOP)
        elif len(turn.sampled) >= turn.max_tokens:
            self._end(turn, Finish.LENGTH)

    def _fail(self, turn: Turn, failed: SequenceFailed) -> None:
        if failed.stuck and turn.sampled:
            self._end(turn, Finish.LENGTH)
            self.notices.append(Stuck(turn.number))
        else:
            self._end(turn, Finish.FAILED, failed.problem)

    def _end(self, turn: Turn, finish: Finish, problem: str | None = None) -> None:
        turn.finish, turn.problem, turn.state = finish, problem, TurnState.PARKING
        turn.live.planned = turn.live.rows
        self._stirred = True

    def _refuse(self, turn: Turn, error: AgentCacheError) -> None:
        self._forget(turn)
        self.notices.append(Refused(turn.number, error))

    def _forget(self, turn: Turn) -> None:
        turn.state = TurnState.DONE
        del self.turns[turn.number]
        self._agents.remove(turn)
        self._stirred = True

    def _wait(self, turn: Turn) -> None:
        self._queue.push(turn)
        self._stirred = True

    def _end_fetch(self, number: int) -> Turn | None:
        turn = self._running[number]
        self.lineage.release(turn.leased)
        turn.leased = ()
        if turn.finish is None:
            return turn
        self._withdraw(turn)
        self._refuse(turn, turn.cut or CLIENT_LEFT)
        return None

    def _withdraw(self, turn: Turn) -> None:
        self.hot.drop(turn.live)
        del self._running[turn.number]
        turn.canary = None
        turn.sequence, turn.state, turn.asked = None, TurnState.QUEUED, len(turn.sampled)
        turn.returned = True

    def _expire(self, now: float) -> None:
        for turn in self._queue.take_late(now):
            self._refuse(
                turn, self._patience.late(now - turn.arrived, len(self.turns) / self.limits.batch)
            )

    # -- the parts of a plan -----------------------------------------------------------------

    def _once_more(self, now: float) -> StepPlan | None:
        """The step of before, where nothing happened since that asks for more thought."""
        if self._stirred or self.hot.dropped or self._queue.may_be_late(now):
            return None
        return self._flights.once_more(self.lineage.spec.interior_restorable)

    def _start(self, now: float) -> tuple[tuple[Start, ...], tuple[Resize, ...]]:
        starts: list[Start] = []
        resizes: list[Resize] = []
        while len(self._running) < self.limits.batch:
            turn = self._queue.first(self._may_start)
            found = self._placed(turn) if turn else None
            if turn is None or found is None:
                break
            self._queue.take(turn)
            self._running[turn.number] = turn
            turn.placed_at = now
            if isinstance(found, Start):
                turn.canary = self.canaries.begin(turn, found.steps, self.lineage)
                starts.append(found)
            else:
                resizes.append(found)
            if turn.state is TurnState.READY:
                self._place(turn)
        return tuple(starts), tuple(resizes)

    def _placed(self, turn: Turn) -> Start | Resize | None:
        """Looks up where its session stands: that may have moved on since the turn came."""
        known = self.registry.get(turn.request.session) if turn.request.session else None
        cursor = known.cursor if known is not None else turn.request.cursor
        return place(turn, cursor, self.hot, self.lineage, self.limits.reserve)

    def _may_start(self, turn: Turn) -> bool:
        return self._agents.is_first(turn) and not prefix_is_coming(turn, self._running.values())

    def _preempt(self, turn: Turn) -> Park:
        stop = turn.live.rows if turn.request.store else turn.live.kept
        park = park_to(turn, stop)
        self._withdraw(turn)
        self._wait(turn)
        self.notices.append(Preempted(turn.number))
        return park

    def _step(self) -> StepPlan | None:
        turns, number = self._running.values(), self._flights.next_number
        if number is None or any(map(is_full, turns)):
            return None
        plan = next_step(number, turns, self.limits, self.pace, self.lineage.spec)
        return self._flights.begin(plan, turns) if plan is not None else None
