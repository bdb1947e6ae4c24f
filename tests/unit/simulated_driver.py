"""Drives a planner without threads, codecs or a model: a row is the token that it stands for.

What a sequence says next depends on all its rows, so one row too many, too few or in the wrong
place shows as a wrong token.
"""

from collections import deque
from collections.abc import Callable, Sequence
from zlib import crc32

from attrs import define, field

from agentcache.domain.errors import AgentCacheError
from agentcache.domain.events import Admitted
from agentcache.domain.hot import HotTier
from agentcache.domain.lineage import Lineage
from agentcache.domain.notices import Limits, Notice, Placed, Preempted, Refused
from agentcache.domain.plan import (
    Park,
    Plan,
    PrefillChunk,
    Sampled,
    SequenceFailed,
    Start,
    StepPlan,
    StepResult,
)
from agentcache.domain.planner import Planner
from agentcache.domain.pool import BlockPool
from agentcache.domain.request import Finish, Identity, Prompt, Tier, TurnRequest
from agentcache.domain.segment import Segment
from agentcache.domain.session import SessionKey
from agentcache.domain.spec import CacheSpec
from agentcache.domain.tokens import Tokens, to_bytes, tokens
from agentcache.domain.turn import Turn, TurnState
from tests.unit.domain_strategies import FULL

ROOT = b"r" * 32
END = 0
Failing = Callable[[int], bool]


def answer(rows: "Tokens[int]", end_rate: int) -> int:
    """What follows `rows`: one in `end_rate` times END (0: never)."""
    value = crc32(to_bytes(rows))
    return END if end_rate and value % end_rate == 0 else 1 + value % 97


def request(
    ids: Sequence[int],
    name: str | None = None,
    *,
    number: int = 0,
    tenant: str = "default",
    shared: int = 0,
    body: int = 0,
    session: SessionKey | None = None,
    **others: object,
) -> TurnRequest:
    """A turn on `ids`; with a `name` it is that exclusive agent's."""
    identity = Identity(name, tenant, exclusive=name is not None)
    root = tenant.encode().ljust(32, b"/")
    if name is not None and session is None:
        session = SessionKey(tenant, root, name)
    prompt = Prompt((), tokens(ids), shared, body)
    return TurnRequest(str(number), identity, root, prompt, session=session, **others)  # type: ignore[arg-type]


def planner_of(
    spec: CacheSpec, blocks: int, limits: Limits | None = None, ends: Sequence[int] = (END,)
) -> Planner:
    """A planner over an empty lineage and `blocks` blocks of memory."""
    hot = HotTier(BlockPool(blocks))
    return Planner(Lineage(spec), hot, ends=frozenset(ends), limits=limits or Limits())


@define(eq=False)
class Live:
    """A sequence as the engine holds it."""

    capacity: int
    rows: "Tokens[int]" = field(factory=tokens)
    sampled: int | None = None
    failed: bool = False


@define(eq=False)
class Told:
    """All that was told of one turn."""

    request: TurnRequest
    placed: list[Admitted] = field(factory=list)
    tokens: list[int] = field(factory=list)
    ended: list[Finish | AgentCacheError] = field(factory=list)
    forwarded: int = 0
    preempted: int = 0
    places: int = 0
    rows: int = 0

    @property
    def owner(self) -> SessionKey:
        """The session that the turn leaves behind."""
        asked = self.request
        own = SessionKey(asked.identity.tenant, asked.root, f"~{asked.id}")
        return asked.session or own


@define(eq=False)
class Drive:
    """Carries plans out as the conductor and the keeper do. `stops` says after how many tokens a
    turn's text is complete, and how many of them are remembered then.
    """

    planner: Planner
    end_rate: int = 0
    now: float = 0.0
    live: dict[int, Live] = field(factory=dict)
    flying: "deque[tuple[StepPlan, StepResult]]" = field(factory=deque)
    fetches: dict[int, Start] = field(factory=dict)
    payloads: dict[bytes, "Tokens[int]"] = field(factory=dict)
    told: dict[int, Told] = field(factory=dict)
    stops: dict[int, tuple[int, int]] = field(factory=dict)
    plans: list[Plan] = field(factory=list)
    seconds_of: Callable[[StepPlan], float] | None = None

    # -- what comes in -----------------------------------------------------------------------

    def ask(self, asked: TurnRequest, stop: tuple[int, int] | None = None) -> Turn:
        turn = self.planner.enqueue(asked, self.now)
        self.told[turn.number] = Told(asked)
        if stop is not None:
            self.stops[turn.number] = stop
        return turn

    def round(self, fails: Failing = lambda _number: False) -> Plan:
        """Plan and carry out; nothing is collected. `fails` says which sequences cannot go on."""
        plan = self.planner.plan(self.now)
        self.plans.append(plan)
        self.planner.hot.check_integrity()
        prepared = plan.park or plan.grow or plan.start or plan.resize
        assert not (prepared and plan.step), "a step beside what may fail"
        self._prepare(plan, fails)
        if plan.step is not None:
            self._submit(plan.step, fails)
        self.tell()
        return plan

    def collect(self) -> None:
        """Take the result of the oldest step."""
        step, result = self.flying.popleft()
        seconds = self.seconds_of(step) if self.seconds_of is not None else None
        self.now += seconds or 0.0
        self.planner.apply(result, seconds)
        self.tell()

    def fetch(self, number: int, bad: int | None = None) -> None:
        """End the fetch of turn `number`; with `bad`, its segment of that index is corrupt."""
        start = self.fetches.pop(number)
        if bad is not None:
            key = start.steps[bad % len(start.steps)].segment.key
            for segment in self.planner.lineage.cut(key) if key in self.planner.lineage else ():
                del self.payloads[segment.key]
            self.planner.fetch_failed(number)
        elif any(step.segment.key not in self.payloads for step in start.steps):
            self.planner.fetch_failed(number)  # another turn's fetch found it corrupt meanwhile
        else:
            self._restore(start)
            self.planner.fetched(number)
        self.tell()

    def advance(self, fetching: bool = True) -> bool:
        """One round of a conductor; False when nothing is left to do. Fetches end if `fetching`."""
        plan = self.round()
        if self.flying and (plan.step is None or len(self.flying) >= self.depth):
            self.collect()
            return True
        if self.fetches and fetching:
            self.fetch(next(iter(self.fetches)))
            return True
        return not plan.idle

    def run(self, rounds: int = 20_000) -> None:
        """Go on until nothing is left to do."""
        for _ in range(rounds):
            if not self.advance():
                return
        raise AssertionError(f"still busy after {rounds} rounds")

    @property
    def depth(self) -> int:
        return self.planner.limits.in_flight

    # -- the engine --------------------------------------------------------------------------

    def _prepare(self, plan: Plan, fails: Failing) -> None:
        for park in plan.park:
            self._keep(park)
        for number in plan.drop:
            self.live.pop(number, None)
        for grow in plan.grow:
            if fails(grow.sequence):
                self.planner.fail(grow.turn, "no memory")
            else:
                self.live[grow.sequence].capacity = grow.capacity
        for start in plan.start:
            self.told[start.turn].places += 1
            if fails(start.sequence):
                self.planner.fail(start.turn, "no memory")
                continue
            self.live[start.sequence] = Live(start.capacity)
            if start.restore:
                self.fetches[start.turn] = start
        for resize in plan.resize:
            self.told[resize.turn].places += 1
            one = self.live[resize.sequence]
            if not self._is_interior():
                assert resize.length in (0, len(one.rows)), "state cannot be taken back"
            assert resize.length <= len(one.rows)
            del one.rows[resize.length :]
            one.sampled, one.failed, one.capacity = None, False, resize.capacity

    def _submit(self, step: StepPlan, fails: Failing) -> None:
        assert len(self.flying) < self.depth
        sampled: list[Sampled] = []
        failed: list[SequenceFailed] = []
        work = [(one.sequence, one) for one in step.prefill]
        for number, chunk in [*work, *((number, None) for number in step.decode)]:
            one = self.live[number]
            one.failed = one.failed or fails(number)
            if one.failed:
                failed.append(SequenceFailed(number, "broken"))
                continue
            self._forward(number, one, chunk)
            if chunk is None or chunk.sampling is not None:
                one.sampled = answer(one.rows, self.end_rate)
                sampled.append(Sampled(number, one.sampled))
        self.flying.append((step, StepResult(step.number, tuple(sampled), tuple(failed))))

    def _forward(self, number: int, one: Live, chunk: PrefillChunk | None) -> None:
        if chunk is None:
            assert one.sampled is not None, "decode without a token"
            ids = tokens([one.sampled])
        else:
            assert chunk.start == len(one.rows), "a gap or a repetition"
            assert len(chunk.ids), "an empty chunk"
            ids = chunk.ids
        one.rows.extend(ids)
        assert len(one.rows) <= one.capacity
        self.told[self._turn_on(number).number].forwarded += len(ids)

    def _turn_on(self, sequence: int) -> Turn:
        turns = self.planner.turns.values()
        return next(one for one in turns if one.sequence and one.sequence.number == sequence)

    def _restore(self, start: Start) -> None:
        rows = tokens()
        for step in start.steps:
            assert step.segment.start == len(rows), "the path has a gap"
            if self.planner.lineage.spec.has_windows:
                assert step.stop == step.segment.stop, "a window that is not there"
            rows.extend(self.payloads[step.segment.key][: step.stop - step.segment.start])
        assert len(rows) == start.restore
        assert self._is_interior() or start.steps[-1].segment.stop == start.restore
        self.live[start.sequence].rows = rows

    def _is_interior(self) -> bool:
        return self.planner.lineage.spec.interior_restorable

    # -- the keeper --------------------------------------------------------------------------

    def _keep(self, park: Park) -> None:
        lineage = self.planner.lineage
        path = lineage.match(park.root, park.ids)
        for stop in park.cuts:
            if stop > path.length:
                self._append(park, path.cursor.key if path.cursor else None, path.length, stop)
                path = lineage.match(park.root, park.ids)
        if park.turn is not None:
            self._end(self.planner.turns[park.turn])

    def _append(self, park: Park, parent: bytes | None, start: int, stop: int) -> None:
        rows = self.live[park.sequence].rows
        assert rows[:stop] == park.ids[:stop], "rows are kept that were not computed"
        assert self._is_interior() or stop == len(rows), "state is kept at the wrong row"
        segment = Segment.following(park.root, parent, start, park.ids[start:stop], stop - start)
        self.planner.lineage.add(segment, Tier.WARM)
        self.payloads[segment.key] = segment.ids

    def _end(self, turn: Turn) -> None:
        told = self.told[turn.number]
        assert turn.state is TurnState.PARKING
        assert turn.finish is not None
        told.ended.append(turn.finish)
        told.rows = len(self.live[turn.live.number].rows) if turn.live.number in self.live else 0
        self.planner.parked(turn.number, told.owner if turn.request.store else None, self.now)

    def evict(self, tier: Tier) -> bool:
        """Let the coldest segment leave `tier`, as the caps would have it; False: all is held."""
        lineage = self.planner.lineage
        victim = lineage.coldest(tier)
        if victim is not None and not lineage.leave(victim.key, tier):
            del self.payloads[victim.key]
        return victim is not None

    # -- telling -----------------------------------------------------------------------------

    def tell(self) -> None:
        for notice in self.planner.take_notices():
            self._tell_one(self.told[notice.turn], notice)

    def _tell_one(self, told: Told, notice: Notice) -> None:
        if isinstance(notice, Placed):
            told.placed.append(notice.admitted)
        elif isinstance(notice, Refused):
            told.ended.append(notice.error)
        elif isinstance(notice, Preempted):
            told.preempted += 1
        else:
            assert told.placed, "a token before its place"
            assert not told.ended, "a token after the end"
            told.tokens.append(notice.token)
            turn = self.planner.turns[notice.turn]
            said = len(told.tokens) - notice.end
            stop, keep = self.stops.get(notice.turn, (0, said))
            if turn.finish is not None or said == stop:
                finish = turn.finish if said != stop and turn.finish else Finish.STOP
                self.planner.finish(notice.turn, finish, min(keep, said))


def drive_of(spec: CacheSpec = FULL, blocks: int = 40, **limits: float) -> Drive:
    """A drive over an empty lineage and `blocks` blocks of memory."""
    return Drive(planner_of(spec, blocks, Limits(**limits)))  # type: ignore[arg-type]


def chunks(drive: Drive) -> list[int]:
    """The lengths of all prefill chunks so far."""
    steps = [plan.step for plan in drive.plans if plan.step is not None]
    return [len(chunk.ids) for step in steps for chunk in step.prefill]


def prefilled(drive: Drive) -> list[int]:
    """The sequences of all prefill chunks so far."""
    steps = [plan.step for plan in drive.plans if plan.step is not None]
    return [chunk.sequence for step in steps for chunk in step.prefill]


def until(drive: Drive, turn: Turn, state: TurnState) -> None:
    """Go on until `turn` is in `state`."""
    for _ in range(5000):
        if turn.state is state:
            return
        drive.advance()
    raise AssertionError(f"turn {turn.number} never came to be {state.value}")
