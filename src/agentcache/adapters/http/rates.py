"""How many turns a tenant and an agent may ask for in a time, and the headers that tell.

The headers are those of draft-ietf-httpapi-ratelimit-headers (structured fields, RFC 9651).
"""

import time
from collections.abc import Mapping

from attrs import define, field, frozen
from limits import RateLimitItem
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from agentcache.domain.errors import Overloaded
from agentcache.domain.request import Identity


@frozen
class _Window:
    """The turns that count together: `whose` they are, at most how many, and their key."""

    whose: str
    rate: RateLimitItem
    key: tuple[str, ...]


@define(eq=False)
class RateLimiter:
    """Counts turns within sliding windows, in this process. For use from one event loop.

    `tenant` limits all turns of a tenant, `agent` those of each agent; None limits nothing.
    """

    tenant: RateLimitItem | None = None
    agent: RateLimitItem | None = None
    _limiter: SlidingWindowCounterRateLimiter = field(init=False)

    @_limiter.default
    def _nothing_counted(self) -> SlidingWindowCounterRateLimiter:
        return SlidingWindowCounterRateLimiter(MemoryStorage())

    async def take(self, identity: Identity) -> None:
        """Count one turn. Raises Overloaded for one too many, which is not counted."""
        windows = self._windows(identity)
        for one in windows:
            if not await self._limiter.test(one.rate, *one.key):
                raise await self._refusal(one)
        for one in windows:
            await self._limiter.hit(one.rate, *one.key)

    async def headers(self, identity: Identity) -> Mapping[str, str]:
        """The headers that tell what is left to it."""
        windows = self._windows(identity)
        if not windows:
            return {}
        return {
            "ratelimit-policy": ", ".join(map(_policy, windows)),
            "ratelimit": ", ".join([await self._left(one) for one in windows]),
        }

    def _windows(self, identity: Identity) -> list[_Window]:
        found = []
        if self.tenant is not None:
            found.append(_Window("tenant", self.tenant, ("tenant", identity.tenant)))
        if self.agent is not None and identity.name is not None:
            found.append(_Window("agent", self.agent, ("agent", identity.tenant, identity.name)))
        return found

    async def _left(self, one: _Window) -> str:
        stats = await self._limiter.get_window_stats(one.rate, *one.key)
        return f'"{one.whose}";r={stats.remaining};t={_seconds_to(stats.reset_time):.0f}'

    async def _refusal(self, one: _Window) -> Overloaded:
        stats = await self._limiter.get_window_stats(one.rate, *one.key)
        problem = f"the {one.whose}'s limit of {one.rate} is used up"
        return Overloaded(problem, _seconds_to(stats.reset_time), "rate_limit")


def _policy(one: _Window) -> str:
    return f'"{one.whose}";q={one.rate.amount};w={one.rate.get_expiry()}'


def _seconds_to(moment: float) -> float:
    return max(0.0, moment - time.time())
