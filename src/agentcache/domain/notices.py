"""What the planner is told once, its limits, and what it tells: notices about turns."""

from attrs import frozen

from agentcache.domain.errors import AgentCacheError
from agentcache.domain.events import Admitted


@frozen
class Limits:
    """How much may go on at once; `busy_chunk` is the prefill chunk while others decode.

    `reserve` is for how many tokens more a sequence gets room at a time.
    """

    batch: int = 8
    queue: int = 256
    chunk: int = 512
    busy_chunk: int = 128
    reserve: int = 512
    in_flight: int = 1
    context: int = 2**31


@frozen
class Token:
    """`token` was sampled for `turn`. With `end` it is the model's end token, and not text."""

    turn: int
    token: int
    end: bool = False


@frozen
class Placed:
    """`turn` has its place, and what could be restored for it is restored."""

    turn: int
    admitted: Admitted


@frozen
class Refused:
    """`turn` never got a place, because of `error`."""

    turn: int
    error: AgentCacheError


Notice = Token | Placed | Refused
