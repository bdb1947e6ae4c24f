"""Parking: which rows of a running turn are kept, and when."""

from collections.abc import Iterable

from agentcache.domain.plan import Park
from agentcache.domain.spec import CacheSpec
from agentcache.domain.turn import Sequence, Turn, TurnState


def due_parks(turns: Iterable[Turn], spec: CacheSpec) -> tuple[Park, ...]:
    """What of all `turns` is to be kept now; nothing of those in a step that is under way."""
    parks = [_due_park(turn, spec) for turn in turns if not turn.live.flying]
    return tuple(park for park in parks if park is not None)


def park_to(turn: Turn, stop: int, ending: int | None = None) -> Park:
    """Keep the rows of `turn` up to `stop`; with `ending`, that turn is over then."""
    sequence = turn.live
    cuts = turn.cuts(sequence.kept, stop)
    sequence.kept = stop
    return Park(sequence.number, sequence.root, sequence.ids[:stop], cuts, ending)


def is_exportable(sequence: Sequence, spec: CacheSpec) -> bool:
    """Whether the rows of `sequence` are worth keeping, and the engine can give them out as they
    are at the last one.
    """
    return sequence.sound and (sequence.exact or spec.interior_restorable)


def _due_park(turn: Turn, spec: CacheSpec) -> Park | None:
    """What of `turn` is to be kept now: all of it at its end, else up to its last cut."""
    sequence, over = turn.live, turn.state is TurnState.PARKING
    if turn.state is TurnState.FETCHING:
        return None
    stop = sequence.rows if over else turn.last_cut(sequence.kept, sequence.rows)
    if not turn.request.store or not is_exportable(sequence, spec):
        stop = sequence.kept
    if stop == sequence.kept and not over:
        return None
    return park_to(turn, stop, turn.number if over else None)
