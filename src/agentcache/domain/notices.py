"""What the planner is told once, its limits, and what it tells: notices about turns."""

from attrs import field, frozen
from attrs.validators import ge, gt

from agentcache.domain.errors import AgentCacheError
from agentcache.domain.events import Admitted
from agentcache.domain.logprobs import Logprobs
from agentcache.domain.segment import Segment


@frozen
class Limits:
    """How much may go on at once.

    `busy_chunk` is for how many tokens of prompts there is room in a step while others decode, who
    shall not wait for longer than `step_seconds` for it. `reserve` is for how many tokens more a
    sequence gets room at a time.
    """

    batch: int = field(default=8, validator=ge(1))
    queue: int = field(default=256, validator=ge(0))
    chunk: int = field(default=512, validator=ge(1))
    busy_chunk: int = field(default=128, validator=ge(1))
    reserve: int = field(default=512, validator=ge(1))
    in_flight: int = field(default=1, validator=ge(1))
    context: int = field(default=2**31, validator=ge(1))
    step_seconds: float = field(default=0.5, validator=gt(0))


@frozen
class Token:
    """`token` was sampled for `turn`. With `end` it is the model's end token, and not text."""

    turn: int
    token: int
    end: bool = False
    logprobs: Logprobs | None = None


@frozen
class Placed:
    """`turn` has its place, and what could be restored for it is restored."""

    turn: int
    admitted: Admitted


@frozen
class Refused:
    """`turn` gets no place, or not the one that it waited for again, because of `error`."""

    turn: int
    error: AgentCacheError


@frozen
class Preempted:
    """`turn` gave its place up to others, and waits for it again."""

    turn: int


@frozen
class Stuck:
    """Nothing more fits the grammar of `turn`: it ended with what it had said."""

    turn: int


@frozen
class Compared:
    """The rows restored for `turn` said what they said before; else `doubted` cannot be used."""

    turn: int
    doubted: tuple[Segment, ...] = ()


Notice = Token | Stuck | Placed | Refused | Preempted | Compared
