"""The planner against any order of events: what holds after every one of them, and at the end."""

from collections import Counter
from collections.abc import Callable
from itertools import combinations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentcache.domain.errors import Overloaded, TurnCancelled, Unavailable
from agentcache.domain.notices import Limits
from agentcache.domain.placing import WORTH_WAITING_FOR
from agentcache.domain.request import Finish, Tier, WhenBusy
from agentcache.domain.spec import CacheSpec
from agentcache.domain.tokens import Tokens, common_prefix, tokens
from agentcache.domain.turn import Turn, TurnState
from agentcache.domain.waiting import AGEING_SECONDS, TurnQueue
from agentcache.succession import on_a_fork
from tests.unit.domain_strategies import cache_specs
from tests.unit.simulated_driver import END, Drive, Told, answer, planner_of, request

SYSTEMS: tuple[list[int], ...] = ([], [7] * 90, [7] * 90 + [8] * 200, list(range(1, 91)) * 7)
ALIVE = (TurnState.READY, TurnState.PREFILLING, TurnState.DECODING)


class FairQueue(TurnQueue):
    """Sees to it that nobody is overtaken by who came later than its priority is worth."""

    def first(self, may_start: Callable[[Turn], bool]) -> Turn | None:
        turn = super().first(may_start)
        for other in self:
            if turn is None or turn.returned or other.number >= turn.number:
                continue
            if other.request.identity.tenant == turn.request.identity.tenant and may_start(other):
                more = turn.request.priority - other.request.priority
                assert turn.arrived <= other.arrived + AGEING_SECONDS * more
        assert turn is not None or not any(map(may_start, self))
        return turn


class PlannerMachine(RuleBasedStateMachine):
    """Whatever comes in and whatever fails, in any order."""

    @initialize(
        spec=cache_specs,
        blocks=st.integers(1, 8),
        batch=st.integers(1, 4),
        in_flight=st.integers(1, 2),
        reserve=st.sampled_from([1, 40, 512]),
        end_rate=st.sampled_from([0, 60]),
        crowd=st.lists(st.sampled_from(range(len(SYSTEMS))), max_size=4),
    )
    def start(
        self,
        spec: CacheSpec,
        blocks: int,
        batch: int,
        in_flight: int,
        reserve: int,
        end_rate: int,
        crowd: list[int],
    ) -> None:
        limits = Limits(batch, 6, 100, 24, reserve, in_flight, context=2500)
        self.drive = Drive(planner_of(spec, blocks, limits), end_rate)
        self.planner = self.drive.planner
        self.planner._queue = FairQueue()
        for index in crowd:  # who all want to say more than there is room for
            ids = [*SYSTEMS[index], index + 1][: self._longest]
            shared = min(len(ids), len(SYSTEMS[index]))
            number = len(self.drive.told) + 1
            self.drive.ask(request(ids, number=number, shared=shared, body=shared, max_tokens=900))

    @property
    def _longest(self) -> int:
        return min(self.planner.hot.capacity, self.planner.limits.context) - 1

    # -- what comes in -----------------------------------------------------------------------

    @precondition(lambda self: self.planner.waiting < 6)
    @rule(
        data=st.data(),
        name=st.sampled_from([None, None, "a", "b"]),
        tenant=st.sampled_from(["t1", "t2"]),
        fresh=st.lists(st.integers(1, 3), min_size=1, max_size=30),
        max_tokens=st.sampled_from([0, 1, 2, 30, 700]),
        stop=st.sampled_from([None, None, None, (1, 0), (5, 3), (9, 9)]),
        patience=st.sampled_from([1.0, 1e9, 1e9]),
        store=st.sampled_from([True, True, True, False]),
        priority=st.sampled_from([0, 0, 0, -10, 3, 10]),
        when_busy=st.sampled_from(["wait", "fork"]),
    )
    def ask(
        self,
        data: st.DataObject,
        name: str | None,
        tenant: str,
        fresh: list[int],
        max_tokens: int,
        stop: tuple[int, int] | None,
        patience: float,
        store: bool,
        priority: int,
        when_busy: WhenBusy,
    ) -> None:
        before = [one for one in self.drive.told.values() if one.tokens]
        said = data.draw(st.sampled_from([None, *before, *before]), "goes on from")
        session = None
        if said is None:
            system = data.draw(st.sampled_from(SYSTEMS), "system")
            shared = len(system)
            ids = [*system, *fresh]
        else:
            tenant, name = said.request.identity.tenant, said.request.identity.name
            shared = said.request.prompt.shared
            ids = [*said.request.prompt.tokens, *(one for one in said.tokens if one != END), *fresh]
            session = said.owner
        ids = ids[: self._longest]
        shared = min(shared, len(ids))
        asked = request(
            ids,
            name,
            number=len(self.drive.told) + 1,
            tenant=tenant,
            shared=shared,
            body=max(shared, len(ids) - 2),
            session=session,
            max_tokens=max_tokens,
            deadline=self.drive.now + patience,
            store=store,
            priority=priority,
            when_busy=when_busy,
        )
        if when_busy == "fork" and self.planner.is_busy(asked.identity):  # as the conductor does
            asked = on_a_fork(asked)
            assert not self.planner.is_busy(asked.identity)
        self.drive.ask(asked, stop)

    @precondition(lambda self: self.planner.turns)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.planner.cancel(data.draw(st.sampled_from(sorted(self.drive.told))))
        self.drive.tell()

    # -- what goes on ------------------------------------------------------------------------

    @rule(failing=st.sets(st.integers(1, 12), max_size=1) | st.just(set()))
    def plan(self, failing: set[int]) -> None:
        self.drive.round(lambda sequence: sequence in failing)

    @precondition(lambda self: self.drive.flying)
    @rule()
    def collect(self) -> None:
        self.drive.collect()

    @precondition(lambda self: self.drive.fetches)
    @rule(data=st.data(), bad=st.none() | st.integers(0, 5))
    def fetch(self, data: st.DataObject, bad: int | None) -> None:
        self.drive.fetch(data.draw(st.sampled_from(sorted(self.drive.fetches))), bad)

    @rule(rounds=st.sampled_from([3, 20, 150, 400]), fetching=st.booleans())
    def go_on(self, rounds: int, fetching: bool) -> None:
        for _ in range(rounds):
            if not self.drive.advance(fetching):
                break

    @rule(what=st.sampled_from(["wait", "age", "write", "warm", "cold", "resting", "refuse"]))
    def disturb(self, what: str) -> None:
        if what == "wait":
            self.drive.now += 2.0
        elif what == "age":
            self.drive.now += 200.0
        elif what == "write":
            self._write()
        elif what == "resting":
            self.planner.hot.drop_resting()
        elif what == "refuse":
            self._refuse_waiting()
        else:
            self.drive.evict(Tier(what))

    def _write(self) -> None:
        lineage = self.planner.lineage
        for key in self.drive.payloads:
            lineage.add(lineage[key], Tier.COLD)

    def _refuse_waiting(self) -> None:
        had = {one.number for one in self.planner.turns.values() if one.admitted}
        self.planner.refuse_waiting(Unavailable("draining"))
        self.drive.tell()
        assert had <= set(self.planner.turns)

    # -- what holds --------------------------------------------------------------------------

    @invariant()
    def every_owner_agrees_with_itself(self) -> None:
        self.planner.check_integrity()

    @invariant()
    def the_engine_holds_what_the_planner_thinks(self) -> None:
        for turn in self._running():
            if turn.state in ALIVE and not turn.live.flying:
                rows = self.drive.live[turn.live.number].rows
                assert len(rows) == turn.live.rows == turn.live.planned
                assert rows == turn.ids[: len(rows)]

    @invariant()
    def an_exclusive_agent_has_one_turn_at_a_time_and_in_order(self) -> None:
        started = Counter(
            turn.request.identity
            for turn in self.planner.turns.values()
            if turn.request.identity.exclusive and (turn.admitted or turn.sequence)
        )
        assert all(count == 1 for count in started.values())

    @invariant()
    def no_shared_prefix_is_computed_twice_at_once(self) -> None:
        working = [one for one in self._running() if one.finish is None and one.request.store]
        for one, other in combinations(working, 2):
            end = one.request.prompt.shared
            agreed = common_prefix(one.request.prompt.tokens, 0, other.request.prompt.tokens, 0)
            if one.request.root == other.request.root and end <= agreed and end < len(other.ids):
                kept = max(self._kept(one), self._kept(other))
                assert end - kept < WORTH_WAITING_FOR

    @invariant()
    def a_stream_waits_for_one_chunk_at_most(self) -> None:
        """Between two of its tokens, as long as nothing else keeps it."""
        assert all(len(step.prefill) <= 1 for step, _ in self.drive.flying)
        chunks = [step for step, _ in self.drive.flying if step.prefill]
        for turn in self._running():
            if turn.state is TurnState.DECODING and turn.asked < turn.max_tokens:
                without = [one for one in chunks if turn.live.number not in one.rows]
                assert len(without) <= 1

    @invariant()
    def a_place_is_told_once_and_an_end_too(self) -> None:
        for number, told in self.drive.told.items():
            assert len(told.placed) <= 1
            assert len(told.ended) == (number not in self.planner.turns)

    def teardown(self) -> None:
        """Nothing starves, nothing is stuck, nothing is left behind, nobody heard a wrong token."""
        if not hasattr(self, "drive"):
            return
        self.drive.run()
        assert not self.planner.turns
        assert not self.drive.flying
        for told in self.drive.told.values():
            assert len(told.ended) == 1
            self._said_what_follows(told.request.prompt.tokens, told.tokens)
            if isinstance(told.ended[0], Finish):
                self._ended_well(told.ended[0], told)
            else:
                assert isinstance(told.ended[0], Overloaded | TurnCancelled | Unavailable)
        self._leaves_nothing_behind()

    def _running(self) -> list[Turn]:
        return [turn for turn in self.planner.turns.values() if turn.sequence is not None]

    def _kept(self, turn: Turn) -> int:
        return turn.restored if turn.state is TurnState.FETCHING else turn.live.kept

    def _said_what_follows(self, prompt: "Tokens[int]", said: list[int]) -> None:
        rows = tokens(prompt)
        for token in said:
            assert token == answer(rows, self.drive.end_rate)
            rows.append(token)

    def _ended_well(self, finish: Finish, told: Told) -> None:
        if finish is Finish.LENGTH:
            assert (len(told.tokens) > 0) == (told.request.max_tokens != 0)
        if told.placed and told.places == 1 and told.rows:
            assert told.placed[0].cached + told.forwarded == told.rows

    def _leaves_nothing_behind(self) -> None:
        hot, lineage = self.planner.hot, self.planner.lineage
        hot.drop_resting()
        self.drive.round()
        assert hot.pool.free == hot.pool.total
        assert not self.drive.live
        for tier in (Tier.WARM, Tier.COLD):
            while self.drive.evict(tier):
                pass
        assert len(lineage) == 0, "a lease was not released"
        self.planner.check_integrity()


TestPlanner = PlannerMachine.TestCase
