"""Growing: room for the next token of those who decode, and who gives way where there is none."""

from collections.abc import Iterable

from agentcache.domain.hot import HotTier
from agentcache.domain.turn import Turn, TurnState

_ALIVE = (TurnState.READY, TurnState.PREFILLING, TurnState.DECODING)


def is_full(turn: Turn) -> bool:
    """Whether `turn` cannot decode before it has more room."""
    sequence = turn.live
    decoding = turn.state is TurnState.DECODING and not sequence.flying
    return decoding and sequence.planned >= sequence.capacity


def enlarge(turn: Turn, hot: HotTier, reserve: int) -> bool:
    """Give `turn` room for `reserve` tokens more, or at least for one; False when there is none."""
    held = turn.live.capacity
    wanted = min(held + reserve, hot.capacity)
    return hot.enlarge(turn.live, wanted) or hot.enlarge(turn.live, held + 1)


def youngest_alive(running: Iterable[Turn]) -> Turn:
    """Who gives way first. The oldest never does, so that somebody always comes to an end."""
    return max((turn for turn in running if turn.state in _ALIVE), key=lambda turn: turn.number)
