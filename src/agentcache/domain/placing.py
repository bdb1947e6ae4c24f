"""Finding a place for a turn: which rows it goes on from, and the memory to do so."""

from collections.abc import Iterable

from agentcache.domain.hot import HotTier
from agentcache.domain.lineage import Lineage
from agentcache.domain.path import Match
from agentcache.domain.plan import Resize, Start
from agentcache.domain.request import Tier
from agentcache.domain.session import Cursor
from agentcache.domain.tokens import common_prefix
from agentcache.domain.turn import Sequence, Turn, TurnState

WORTH_WAITING_FOR = 64


def place(
    turn: Turn, cursor: Cursor | None, hot: HotTier, lineage: Lineage, reserve: int
) -> Start | Resize | None:
    """Give `turn`, whose session stands at `cursor`, a sequence; None when there is no memory now.

    It goes on from wherever it has least to compute: the sequence that its session left resting,
    or the rows that the lineage knows. There is room for
    `reserve` tokens more, as far as it may want them.
    """
    ids = turn.ids
    match = _longest(turn, cursor, lineage)
    wanted = min(turn.max_tokens - len(turn.sampled), reserve)
    capacity = min(len(ids) + wanted, hot.capacity)
    resting = hot.resting(turn.request.session)
    if resting is not None and resting.root == turn.request.root:
        reuse = _reusable(resting, turn, lineage)
        if reuse and reuse >= match.restore:
            return _take_over(turn, resting, reuse, capacity, hot, lineage, match)
    return _begin(turn, match, capacity, hot, lineage)


def prefix_is_coming(turn: Turn, running: Iterable[Turn]) -> bool:
    """Whether another turn is just computing rows that `turn` could restore if it waited."""
    ids = turn.ids
    for other in running:
        if not other.request.store or other.request.root != turn.request.root:
            continue
        if other.sequence is None or other.finish is not None:
            continue
        sequence, prompt = other.sequence, other.request.prompt
        shared = common_prefix(ids, 0, prompt.tokens, 0)
        kept = other.restored if other.state is TurnState.FETCHING else sequence.kept
        if other.last_cut(kept, min(shared, turn.most_restored)) - kept >= WORTH_WAITING_FOR:
            return True
    return False


def _longest(turn: Turn, cursor: Cursor | None, lineage: Lineage) -> Match:
    """What the lineage knows of the turn's tokens. Of its own session every row counts: few rows of
    a segment are not worth depending on others for, but this agent depends on itself.
    """
    ids, request = turn.ids, turn.request
    match = lineage.match(request.root, ids, turn.most_restored)
    if cursor is None:
        return match
    own = lineage.along(cursor, ids, min(len(ids), turn.most_restored))
    return own if own.restore > match.restore else match


def _reusable(resting: Sequence, turn: Turn, lineage: Lineage) -> int:
    ids = turn.ids
    agreed = min(common_prefix(resting.ids, 0, ids, 0), resting.rows, turn.most_restored)
    return lineage.spec.restore_point(agreed, (resting.rows,))


def _take_over(
    turn: Turn,
    sequence: Sequence,
    reuse: int,
    capacity: int,
    hot: HotTier,
    lineage: Lineage,
    match: Match,
) -> Resize | None:
    if not hot.enlarge(sequence, max(capacity, sequence.capacity)):
        return None
    hot.wake(sequence)
    lineage.touch(match.keys)
    sequence.cut_to(reuse)
    sequence.exact = True  # the engine forgets the rest before it goes on
    sequence.ids.extend(turn.ids[reuse:])
    turn.sequence, turn.restored, turn.tier = sequence, reuse, Tier.HOT
    turn.state = TurnState.READY
    return Resize(turn.number, sequence.number, reuse, sequence.capacity)


def _begin(turn: Turn, match: Match, capacity: int, hot: HotTier, lineage: Lineage) -> Start | None:
    sequence = hot.make(turn.request.root, turn.ids, capacity)
    if sequence is None:
        return None
    steps = match.restoring()
    turn.sequence, turn.restored = sequence, match.restore
    turn.tier, turn.state = Tier.NONE, TurnState.READY
    if steps:
        keys = tuple(step.segment.key for step in steps)
        lineage.hold(keys)
        lineage.touch(match.keys)
        turn.leased, turn.state = keys, TurnState.FETCHING
        sequence.sources = frozenset(keys)
        warm = all(lineage.resides(key, Tier.WARM) for key in keys)
        turn.tier = Tier.WARM if warm else Tier.COLD
    return Start(turn.number, sequence.number, sequence.capacity, steps, match.restore)
