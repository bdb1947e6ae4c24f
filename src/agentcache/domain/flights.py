"""The steps under way: planned, and their results not applied yet."""

from collections import deque
from collections.abc import Collection, Iterable

from attrs import define, field

from agentcache.domain.errors import IntegrityError
from agentcache.domain.plan import StepPlan
from agentcache.domain.steady import Steady
from agentcache.domain.turn import Sequence, Turn


@define(eq=False)
class Flights:
    """Steps in the order in which they were planned, numbered from 1; at most `most` at a time.

    `steady` says how it goes on after the last one, where that can simply be done once more.
    """

    most: int
    steady: Steady | None = field(default=None, init=False)
    _flying: "deque[StepPlan]" = field(factory=deque, init=False)
    _last: int = field(default=0, init=False)

    def __len__(self) -> int:
        return len(self._flying)

    @property
    def next_number(self) -> int | None:
        """What the next step is called; None while no further one may begin."""
        return None if len(self._flying) >= self.most else self._last + 1

    def begin(self, plan: StepPlan, turns: Collection[Turn]) -> StepPlan:
        """`plan`, which has the next number and is of some of `turns`, is under way from now on."""
        self._last = plan.number
        self._flying.append(plan)
        self.steady = Steady.after(plan, turns)
        return plan

    def once_more(self, overlapping: bool) -> StepPlan | None:
        """The step of before again, under way; None where it cannot be done again now.

        Unless `overlapping`, a sequence is in one step at a time.
        """
        if self.steady is None or not self.steady.left or len(self._flying) >= self.most:
            return None
        if self._flying and not overlapping:
            return None
        self._last += 1
        plan = self.steady.next(self._last)
        self._flying.append(plan)
        return plan

    def land(self, number: int) -> StepPlan:
        """The oldest step, which is no longer under way; its result is that of step `number`."""
        plan = self._flying.popleft()
        assert plan.number == number, f"step {number} came before {plan.number}"
        return plan

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Raise IntegrityError unless `sequences` count their steps as they are under way here."""
        uses = [number for plan in self._flying for number in plan.rows]
        if any(one.flying != uses.count(one.number) for one in sequences):
            raise IntegrityError("a sequence counts its uncollected steps wrongly")
