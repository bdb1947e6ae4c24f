"""A turn on its way through the planner, and the live sequence it works on."""

from enum import Enum
from typing import Self

from attrs import define, field

from agentcache.domain.canary import Canary
from agentcache.domain.errors import AgentCacheError, InvalidRequest, PromptTooLong
from agentcache.domain.events import Admitted
from agentcache.domain.request import Finish, Miss, Prompt, Tier, TurnRequest
from agentcache.domain.session import SessionKey
from agentcache.domain.spec import CacheSpec
from agentcache.domain.tokens import Tokens, tokens

SEGMENT_ROWS = 2048


class TurnState(Enum):
    """Where a turn is. Any state but DONE may be followed by PARKING or DONE when it is ended."""

    QUEUED = "queued"
    FETCHING = "fetching"
    READY = "ready"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    PARKING = "parking"
    DONE = "done"


def marks_of(prompt: Prompt, spec: CacheSpec) -> tuple[int, ...]:
    """Where segments shall end in a prompt: what agents share ends there; and where a sequence can
    continue only at the end of a segment, what the next prompt will have in common with this one.
    """
    if spec.interior_restorable:
        return (prompt.shared,)
    return tuple(sorted((prompt.shared, prompt.body)))


@define(eq=False)
class Sequence:
    """A live sequence of the engine, as the planner sees it.

    `rows` were computed, `planned` are computed or in a step that is not collected yet, `kept` are
    in the lineage. `owner` is the session whose next turn may take it over. It is `exact` while the
    engine holds these rows and no more: otherwise only rows of full layers can still be told apart.
    It was restored from the segments `sources`; it is not `sound` once one of these is in doubt.
    """

    number: int
    root: bytes
    ids: "Tokens[int]"
    capacity: int
    owner: SessionKey | None = None
    rows: int = 0
    planned: int = 0
    kept: int = 0
    flying: int = 0  # uncollected steps that it is in
    exact: bool = True
    sources: frozenset[bytes] = frozenset()
    sound: bool = True

    def cut_to(self, length: int) -> None:
        """Forget every token and row from `length` on."""
        self.exact = self.exact and self.rows <= length
        del self.ids[length:]
        self.rows = min(self.rows, length)
        self.planned = self.rows
        self.kept = min(self.kept, length)

    def advance(self, count: int) -> None:
        """`count` more rows were computed; those of a token that is forgotten do not count."""
        if self.rows + count > len(self.ids):
            self.exact = False
            return
        self.rows += count
        self.planned = max(self.planned, self.rows)


@define(eq=False)
class Turn:
    """One turn: what was asked, where it is, what came of it so far.

    `marks` are the places in the prompt, in order, where segments shall end in any case. It went on
    from `restored` rows when it got its place; `cached` is how many these were the first time.
    It `returned` to the queue if it had a place before. While it has a `canary`, nobody was told of
    the place: what was restored is still to be compared. What it leaves behind is `traced` if it is
    to be compared one day.
    """

    number: int
    request: TurnRequest
    arrived: float
    max_tokens: int
    marks: tuple[int, ...] = ()
    state: TurnState = TurnState.QUEUED
    sequence: Sequence | None = None
    leased: tuple[bytes, ...] = ()
    placed_at: float = 0.0
    restored: int = 0
    cached: int = 0
    tier: Tier = Tier.NONE
    miss: Miss = Miss.NONE
    admitted: bool = False
    returned: bool = False
    sampled: "Tokens[int]" = field(factory=tokens)
    asked: int = 0  # tokens sampled, or to be sampled by steps that are not collected yet
    finish: Finish | None = None
    problem: str | None = None
    cut: AgentCacheError | None = None  # why it was cancelled
    canary: Canary | None = None
    traced: bool = False
    bypassed: int = 0  # steps in which another turn's prefill went first
    _cut: tuple[int, int] = field(default=(-1, 0), init=False, repr=False)  # asked for last

    @classmethod
    def of(cls, number: int, request: TurnRequest, now: float, most: int, spec: CacheSpec) -> Self:
        """A new turn, of at most `most` tokens. Raises InvalidRequest, PromptTooLong."""
        length = len(request.prompt)
        if not length:
            raise InvalidRequest("the prompt is empty", "messages")
        if length >= most:
            raise PromptTooLong(tokens=length, limit=most - 1)
        wanted = most if request.max_tokens is None else request.max_tokens
        marks = marks_of(request.prompt, spec)
        room = min(wanted, most - length)
        return cls(number, request, now, room, marks, miss=request.prompt.miss)

    @property
    def ids(self) -> "Tokens[int]":
        """All tokens so far: the prompt and what was sampled."""
        return self.request.prompt.tokens + self.sampled

    @property
    def live(self) -> Sequence:
        """Its sequence, which it has from FETCHING to PARKING."""
        assert self.sequence is not None, f"turn {self.number} is {self.state.value}"
        return self.sequence

    @property
    def most_restored(self) -> int:
        """How many rows it can go on from: a token is left to run where something is to be said."""
        return len(self.request.prompt) + len(self.sampled) - (self.max_tokens > 0)

    def admit(self) -> Admitted:
        """It has its place for good; what is told of it."""
        self.cached, self.admitted = self.restored, True
        if self.miss is Miss.NONE and self.cached < min(self.request.expected, len(self.ids) - 1):
            self.miss = Miss.EVICTED
        identity = self.request.identity
        agent = identity.name if identity.exclusive else None
        return Admitted(len(self.request.prompt), self.cached, self.tier, self.miss, agent)

    @property
    def is_prefilled(self) -> bool:
        """Whether it was to be prefilled only, and is."""
        return not self.max_tokens and self.live.rows == len(self.live.ids)

    @property
    def to_prefill(self) -> int:
        """How many tokens are still to be planned before the first one can be sampled."""
        return len(self.live.ids) - self.live.planned

    def next_cut(self, position: int) -> int:
        """The first place after `position` where a segment shall end.

        These depend on the prompt alone, so that agents with one prefix cut it alike: its marks,
        and every SEGMENT_ROWS tokens after each of them and after the beginning.
        """
        if self._cut[0] != position:  # the same one is asked for with every token
            self._cut = position, self._next_cut(position)
        return self._cut[1]

    def cuts(self, start: int, stop: int) -> tuple[int, ...]:
        """All places in (start, stop] where segments shall end, `stop` among them."""
        found = []
        while start < stop:
            start = min(self.next_cut(start), stop)
            found.append(start)
        return tuple(found)

    def last_cut(self, start: int, stop: int) -> int:
        """The last regular cut in (start, stop]; `start` when there is none."""
        cut = self.next_cut(start)
        while cut <= stop:
            start, cut = cut, self.next_cut(cut)
        return start

    def _next_cut(self, position: int) -> int:
        last = max((mark for mark in self.marks if mark <= position), default=0)
        regular = last + ((position - last) // SEGMENT_ROWS + 1) * SEGMENT_ROWS
        return min((mark for mark in self.marks if position < mark < regular), default=regular)
