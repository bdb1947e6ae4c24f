"""How a turn shall be treated, whatever the dialect: the X-Agent-* headers beside the name."""

import math

from attrs import evolve
from starlette.datastructures import Headers

from agentcache.domain.errors import InvalidRequest
from agentcache.domain.request import MAX_PRIORITY, WhenBusy
from agentcache.service import Ask

BUSY = "x-agent-busy"
PRIORITY = "x-agent-priority"
TIMEOUT = "x-agent-timeout"
CACHE = "x-agent-cache"
CODEC = "x-agent-codec"
_WHEN_BUSY: dict[str, WhenBusy] = {"wait": "wait", "fork": "fork"}


def with_wishes(ask: Ask, headers: Headers) -> Ask:
    """The Ask as its headers want it. Raises InvalidRequest that names the header.

    X-Agent-Busy: wait or fork, when the agent's last turn still runs. X-Agent-Priority: from -10 to
    10, higher ones first. X-Agent-Cache: with no-store the turn uses the cache and leaves nothing
    behind. X-Agent-Timeout: seconds to wait for a place at most. X-Agent-Codec: what the agent's
    rows are kept with from now on.
    """
    if (busy := headers.get(BUSY)) is not None:
        ask = evolve(ask, when_busy=_when_busy(busy))
    if (priority := headers.get(PRIORITY)) is not None:
        ask = evolve(ask, priority=_priority(priority))
    if (kept := headers.get(CACHE)) is not None:
        ask = evolve(ask, store=ask.store and _is_stored(kept))
    if (timeout := headers.get(TIMEOUT)) is not None:
        ask = evolve(ask, timeout=_seconds(timeout))
    if (codec := headers.get(CODEC)) is not None:
        ask = evolve(ask, codec=codec.strip())
    return ask


def _is_stored(text: str) -> bool:
    word = text.strip().lower()
    if word not in ("store", "no-store"):
        raise InvalidRequest("X-Agent-Cache must be store or no-store", CACHE)
    return word == "store"


def _when_busy(text: str) -> WhenBusy:
    word = text.strip().lower()
    if word not in _WHEN_BUSY:
        raise InvalidRequest("X-Agent-Busy must be wait or fork", BUSY)
    return _WHEN_BUSY[word]


def _priority(text: str) -> int:
    number = _number(text)
    if number is None or number != int(number) or abs(number) > MAX_PRIORITY:
        problem = f"X-Agent-Priority must be a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}"
        raise InvalidRequest(problem, PRIORITY)
    return int(number)


def _seconds(text: str) -> float:
    number = _number(text)
    if number is None or number < 0:
        raise InvalidRequest("X-Agent-Timeout must be seconds, at least 0", TIMEOUT)
    return number


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
