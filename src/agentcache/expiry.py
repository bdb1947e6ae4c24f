"""Agents whose time is over are forgotten, once no turn runs."""

import logging

from attrs import define, field

from agentcache.domain.session import Session
from agentcache.keeper import Keeper
from agentcache.ports.clock import Clock

CHECK_SECONDS = 1.0
JUMP_SECONDS = 60.0
GRACE_SECONDS = 600.0

log = logging.getLogger(__name__)


@define(eq=False)
class Expiry:
    """Forgets sessions at `Session.expires`, pinned or not, and those not pinned that nobody talked
    to for `idle_ttl` seconds.

    The wall clock may be wrong, and forgetting cannot be undone. So what expires while it is being
    watched goes at once; but after a jump of the clock, and after the start, when nobody knows
    whether it has jumped, nothing goes for GRACE_SECONDS, in which it can be set right.
    """

    keeper: Keeper
    clock: Clock
    idle_ttl: float | None = None
    _checked: float = field(init=False)
    _ahead: float = field(init=False)  # of the monotonic clock
    _not_before: float = field(init=False)

    @_checked.default
    def _now(self) -> float:
        return self.clock.monotonic()

    @_ahead.default
    def _ahead_now(self) -> float:
        return self.clock.wall() - self.clock.monotonic()

    @_not_before.default
    def _after_the_start(self) -> float:
        return self.clock.monotonic() + GRACE_SECONDS

    def work(self) -> None:
        """Forget whose time is over; does nothing if it was just done."""
        now = self.clock.monotonic()
        if now - self._checked < CHECK_SECONDS:
            return
        self._checked = now
        self._watch_the_clock(now)
        if now >= self._not_before:
            wall = self.clock.wall()
            for session in tuple(self.keeper.registry):
                if self._is_over(session, wall):
                    log.info("agent %s is forgotten: its time is over", session.name)
                    self.keeper.forget(session.key)

    def _watch_the_clock(self, now: float) -> None:
        ahead = self.clock.wall() - now
        if abs(ahead - self._ahead) > JUMP_SECONDS:
            log.warning(
                "the clock jumped by %.0f s: no agent is forgotten for %.0f s",
                ahead - self._ahead,
                GRACE_SECONDS,
            )
            self._not_before = now + GRACE_SECONDS
        self._ahead = ahead

    def _is_over(self, session: Session, wall: float) -> bool:
        if session.expires is not None:
            return session.expires <= wall
        idle = self.idle_ttl is not None and session.used + self.idle_ttl <= wall
        return idle and not session.pinned
