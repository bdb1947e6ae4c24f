"""The port to whoever counts and watches."""

from typing import Protocol

from agentcache.domain.request import Finish, Miss, Tier


class Telemetry(Protocol):
    """Told what happened, as it happens, from any thread. Implementations never raise."""

    def forwarded(self, tokens: int) -> None:
        """So many tokens were passed to the model."""
        ...

    def turn_started(self, prompt: int, cached: int, tier: Tier, miss: Miss) -> None:
        """A turn of `prompt` tokens starts with `cached` of them served from `tier`."""
        ...

    def turn_ended(self, finish: Finish, completion: int, seconds_to_first: float | None) -> None:
        """A turn ended after `completion` sampled tokens; seconds are from its arrival."""
        ...

    def stored(self, segments: int, nbytes: int) -> None:
        """So many segments of `nbytes` in all were written to disk."""
        ...

    def evicted(self, tier: Tier, segments: int, nbytes: int) -> None:
        """So many segments left `tier`."""
        ...

    def corrupt(self, problem: str) -> None:
        """A stored segment could not be used."""
        ...

    def gauges(self, values: dict[str, float]) -> None:
        """Levels as they are now: queued, running, hot_bytes, warm_bytes, cold_bytes, sessions."""
        ...
