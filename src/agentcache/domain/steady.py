"""Decoding that goes on as it did: the same turns, a token each, and nothing to look at between."""

from collections.abc import Collection
from typing import Self

from attrs import define

from agentcache.domain.errors import IntegrityError
from agentcache.domain.plan import StepPlan, StepResult
from agentcache.domain.turn import Sequence, Turn, TurnState


@define(eq=False)
class Steady:
    """All turns that run, in the order of `decode`, while every one of them decodes.

    For `left` more steps none of them asks for its last token, fills its room, or comes to a cut.
    """

    members: tuple[tuple[Turn, Sequence], ...]
    decode: tuple[int, ...]
    left: int

    @classmethod
    def after(cls, plan: StepPlan, turns: Collection[Turn]) -> Self | None:
        """What follows the step `plan`, where that was a token of each of `turns` and no more."""
        if plan.prefill or len(plan.decode) != len(turns):
            return None
        members = tuple((turn, turn.live) for turn in turns)
        return cls(members, plan.decode, min(_steps_left(turn) for turn in turns))

    def next(self, number: int) -> StepPlan:
        """Step `number`: the same once more. There must be one left."""
        self.left -= 1
        for turn, sequence in self.members:
            turn.asked += 1
            sequence.planned += 1
            sequence.flying += 1
        return StepPlan(number, (), self.decode)

    def is_of(self, plan: StepPlan, result: StepResult) -> bool:
        """Whether `plan` was such a step, and its `result` is a token of each and no more."""
        if plan.decode is not self.decode or result.failed or result.retold:
            return False
        return len(result.sampled) == len(self.decode)

    def check_integrity(self, turns: Collection[Turn]) -> None:
        """Raise IntegrityError unless these are `turns`, and all can go on for `left` steps."""
        if [turn for turn, _ in self.members] != list(turns):
            raise IntegrityError("decoding goes on without a turn that has a place")
        if any(turn.live is not sequence for turn, sequence in self.members):
            raise IntegrityError("a turn decodes on a sequence that is not its own")
        if tuple(sequence.number for _, sequence in self.members) != self.decode:
            raise IntegrityError("a step is not that of the turns that decode")
        if any(turn.state is not TurnState.DECODING or turn.canary for turn in turns):
            raise IntegrityError("a turn that does not decode is taken for one that does")
        if any(_steps_left(turn) < self.left for turn in turns):
            raise IntegrityError("decoding goes on past what has to be looked at")


def _steps_left(turn: Turn) -> int:
    """For how many more steps `turn` can decode as it stands, if it can decode at all."""
    sequence = turn.live
    left = min(turn.max_tokens - turn.asked, sequence.capacity - sequence.planned)
    if turn.request.store and sequence.sound:
        left = min(left, turn.next_cut(sequence.kept) - sequence.planned)
    return max(0, left)
