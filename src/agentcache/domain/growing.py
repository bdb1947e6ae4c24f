"""Growing: room for the next token of those who decode, and who gives way where there is none."""

from collections.abc import Callable, Iterable, Mapping

from agentcache.domain.hot import HotTier
from agentcache.domain.plan import Grow, Park
from agentcache.domain.turn import Turn, TurnState

_ALIVE = (TurnState.READY, TurnState.PREFILLING, TurnState.DECODING)


def make_room(
    running: Mapping[int, Turn], hot: HotTier, reserve: int, preempt: Callable[[Turn], Park]
) -> tuple[tuple[Grow, ...], tuple[Park, ...]]:
    """Make room for the next token of every decoding turn, the oldest first.

    Where there is none, the youngest turns give their place up: `preempt` takes them out of
    `running`.
    """
    if not any(map(is_full, running.values())):
        return (), ()
    grown: list[Grow] = []
    preempted: list[Park] = []
    for turn in sorted(running.values(), key=lambda one: one.number):
        while turn.number in running and is_full(turn):
            if _enlarge(turn, hot, reserve):
                grown.append(Grow(turn.number, turn.live.number, turn.live.capacity))
                continue
            victim = _youngest_alive(running.values())
            if victim.live.flying:  # no step is planned until it has landed
                return tuple(grown), tuple(preempted)
            preempted.append(preempt(victim))
    return tuple(grown), tuple(preempted)


def is_full(turn: Turn) -> bool:
    """Whether `turn` cannot decode before it has more room."""
    sequence = turn.live
    decoding = turn.state is TurnState.DECODING and not sequence.flying
    return decoding and sequence.planned >= sequence.capacity


def _enlarge(turn: Turn, hot: HotTier, reserve: int) -> bool:
    """Give `turn` room for `reserve` tokens more, or at least for one; False when there is none."""
    held = turn.live.capacity
    wanted = min(held + reserve, hot.capacity)
    return hot.enlarge(turn.live, wanted) or hot.enlarge(turn.live, held + 1)


def _youngest_alive(running: Iterable[Turn]) -> Turn:
    """Who gives way first. The oldest never does, so that somebody always comes to an end."""
    return max((turn for turn in running if turn.state in _ALIVE), key=lambda turn: turn.number)
