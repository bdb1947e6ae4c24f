"""Putting a step together: who decodes, and whose prompt goes on by how much."""

from collections.abc import Collection

from agentcache.domain.notices import Limits
from agentcache.domain.plan import PrefillChunk, StepPlan
from agentcache.domain.spec import CacheSpec
from agentcache.domain.turn import Turn, TurnState

MOST_BYPASSES = 4


def next_step(
    number: int, turns: Collection[Turn], limits: Limits, spec: CacheSpec
) -> StepPlan | None:
    """Step `number`, for all of `turns` that can go on; None when none of them can.

    One chunk of one prompt, smaller while others decode, and a token of everybody who decodes.
    """
    decode = [turn for turn in turns if _can_decode(turn, spec)]
    busy = any(turn.state is TurnState.DECODING for turn in turns)
    turn = _next_prefill(turns)
    if turn is None and not decode:
        return None
    for one in decode:
        one.asked += 1
        one.live.planned += 1
    chunk = _chunk(turn, limits.busy_chunk if busy else limits.chunk, spec) if turn else None
    plan = StepPlan(number, (chunk,) if chunk else (), tuple(one.live.number for one in decode))
    for one in [*decode, turn] if turn else decode:
        one.live.flying += 1
    return plan


def rows_of(plan: StepPlan) -> dict[int, int]:
    """How many rows the step adds to each of its sequences."""
    return {chunk.sequence: len(chunk.ids) for chunk in plan.prefill} | dict.fromkeys(
        plan.decode, 1
    )


def _can_decode(turn: Turn, spec: CacheSpec) -> bool:
    if turn.state is not TurnState.DECODING or turn.asked >= turn.max_tokens:
        return False
    if turn.live.flying and not spec.interior_restorable:
        return False  # a row past the end of the turn could not be taken back
    return turn.live.planned < turn.live.capacity and not _must_park(turn)


def _must_park(turn: Turn) -> bool:
    """Whether a cut is reached that has to be kept before the turn goes on: state and window layers
    are known only at the row where the sequence stands, and others may wait for it.
    """
    return turn.request.store and turn.next_cut(turn.live.kept) <= turn.live.planned


def _next_prefill(turns: Collection[Turn]) -> Turn | None:
    """The turn with least to prefill, unless the oldest was bypassed too often."""
    states = (TurnState.READY, TurnState.PREFILLING)
    able = [turn for turn in turns if turn.state in states and not _must_park(turn)]
    if not able:
        return None
    oldest = min(able, key=lambda turn: turn.number)
    shortest = min(able, key=lambda turn: (turn.to_prefill, turn.number))
    turn = oldest if oldest.bypassed >= MOST_BYPASSES else shortest
    oldest.bypassed = 0 if turn is oldest else oldest.bypassed + 1
    return turn


def _chunk(turn: Turn, size: int, spec: CacheSpec) -> PrefillChunk:
    sequence, start = turn.live, turn.live.planned
    stop = min(start + size, len(sequence.ids))
    if not spec.interior_restorable and turn.request.store:
        stop = min(stop, turn.next_cut(start))
    last = stop == len(sequence.ids)
    sequence.planned = stop
    turn.asked += last
    turn.state = TurnState.DECODING if last else TurnState.PREFILLING
    sampling = turn.request.sampling if last else None
    return PrefillChunk(sequence.number, start, sequence.ids[start:stop], sampling)
