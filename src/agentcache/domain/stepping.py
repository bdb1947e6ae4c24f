"""Putting a step together: who decodes, and whose prompt goes on by how much."""

from collections.abc import Collection, Sequence

from attrs import evolve

from agentcache.domain.notices import Limits
from agentcache.domain.pacing import Pace
from agentcache.domain.plan import PrefillChunk, StepPlan
from agentcache.domain.spec import CacheSpec
from agentcache.domain.turn import Turn, TurnState

MOST_BYPASSES = 4


def next_step(
    number: int, turns: Collection[Turn], limits: Limits, pace: Pace, spec: CacheSpec
) -> StepPlan | None:
    """Step `number`, for all of `turns` that can go on; None when none of them can.

    A chunk of one prompt, as small as `pace` has it while others decode, whole prompts of others as
    far as these fit beside it, and a token of everybody who decodes. No chunk runs while one of
    these could not go on beside it.
    """
    decoding = [turn for turn in turns if turn.state is TurnState.DECODING]
    decode = [turn for turn in decoding if _can_decode(turn, spec)]
    able = [] if _is_held(decoding, decode) else [turn for turn in turns if _can_prefill(turn)]
    if not able and not decode:
        return None
    for one in decode:
        one.asked += 1
        one.live.planned += 1
    prompts = _prompts(able, len(decoding), limits, pace)
    chunks = tuple(_chunk(turn, size, spec) for turn, size in prompts)
    for one in (*decode, *(turn for turn, _ in prompts)):
        one.live.flying += 1
    return StepPlan(number, chunks, tuple(one.live.number for one in decode))


def _is_held(decoding: Collection[Turn], decode: Collection[Turn]) -> bool:
    """Whether somebody's next token waits for a step under way: then it waits for no other one."""
    if len(decoding) == len(decode):
        return False
    wanting = [turn for turn in decoding if turn.asked < turn.max_tokens and turn.live.flying]
    return not set(wanting) <= set(decode)


def _can_decode(turn: Turn, spec: CacheSpec) -> bool:
    if turn.state is not TurnState.DECODING or turn.asked >= turn.max_tokens:
        return False
    if turn.live.flying and not spec.interior_restorable:
        return False  # a row past the end of the turn could not be taken back
    if turn.canary is not None:
        return False  # what it was restored from may not be what it should be
    return turn.live.planned < turn.live.capacity and not _must_park(turn)


def _must_park(turn: Turn) -> bool:
    """Whether a cut is reached that has to be kept before the turn goes on: state and window layers
    are known only at the row where the sequence stands, and others may wait for it.
    """
    keeps = turn.request.store and turn.live.sound
    return keeps and turn.next_cut(turn.live.kept) <= turn.live.planned


def _can_prefill(turn: Turn) -> bool:
    if turn.state not in (TurnState.READY, TurnState.PREFILLING) or not turn.to_prefill:
        return False
    return not _must_park(turn) and not (turn.canary and turn.live.flying)


def _prompts(
    able: Sequence[Turn], decoding: int, limits: Limits, pace: Pace
) -> list[tuple[Turn, int]]:
    """Whose prompts go on, and by how many tokens: the next one's by what there is room for, and
    the shortest of the others where the whole of them fits into what it leaves.
    """
    if not able:
        return []
    room = pace.chunk(limits.busy_chunk) if decoding else limits.chunk
    first = _next_prefill(able)
    sizes = [min(room, first.to_prefill)]
    others = sorted((turn for turn in able if turn is not first), key=_shortest_first)
    for turn in others:
        fits = turn.to_prefill <= room - sum(sizes)
        if not fits or not pace.joins(turn.to_prefill, sizes, decoding):
            break
        sizes.append(turn.to_prefill)
    return list(zip([first, *others], sizes, strict=False))


def _next_prefill(able: Sequence[Turn]) -> Turn:
    """The turn with least to prefill, unless the oldest was bypassed too often."""
    oldest = min(able, key=lambda turn: turn.number)
    turn = oldest if oldest.bypassed >= MOST_BYPASSES else min(able, key=_shortest_first)
    oldest.bypassed = 0 if turn is oldest else oldest.bypassed + 1
    return turn


def _shortest_first(turn: Turn) -> tuple[int, int]:
    return turn.to_prefill, turn.number


def _chunk(turn: Turn, size: int, spec: CacheSpec) -> PrefillChunk:
    sequence, start = turn.live, turn.live.planned
    stop = min(start + size, len(sequence.ids))
    if not spec.interior_restorable and turn.request.store:
        stop = min(stop, turn.next_cut(start))
    says = stop == len(sequence.ids) and turn.max_tokens > 0
    sequence.planned = stop
    turn.asked += says
    turn.state = TurnState.DECODING if says else TurnState.PREFILLING
    ids, asked = sequence.ids[start:stop], turn.request
    again = turn.canary.again if turn.canary is not None else None
    chunk = PrefillChunk(sequence.number, start, ids, again=again)
    if not says:
        return chunk
    said = turn.sampled[:]
    return evolve(chunk, sampling=asked.sampling, guide=asked.guide, said=said, traced=turn.traced)
