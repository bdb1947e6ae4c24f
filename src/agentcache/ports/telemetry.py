"""The port to whoever counts and watches."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from agentcache.domain.request import Finish, Miss, Tier

LEVELS: Mapping[str, str] = MappingProxyType(
    {
        "queued": "Turns that wait for a place.",
        "running": "Turns that have a place.",
        "sessions": "Sessions that are remembered.",
        "pool_blocks_used": "Blocks of KV memory that sequences hold, resting ones too.",
        "pool_blocks_free": "Blocks of KV memory that nobody holds.",
        "hot_bytes": "KV memory of live sequences.",
        "warm_bytes": "Encoded segments in RAM.",
        "cold_bytes": "What the segments take on disk.",
        "write_queue_bytes": "Payloads that wait for the disk.",
        "read_only": "1 while nothing can be written to the home, else 0.",
    }
)


class TurnTelemetry(Protocol):
    """Told what becomes of turns."""

    def forwarded(self, tokens: int, decoded: int = 0, seconds: float = 0.0) -> None:
        """A step passed so many tokens to the model, of which it `decoded` one for each of so many
        sequences, and prefilled the rest; nothing else was done for `seconds`.
        """
        ...

    def turn_started(self, prompt: int, cached: int, tier: Tier, miss: Miss) -> None:
        """A turn of `prompt` tokens starts with `cached` of them served from `tier`."""
        ...

    def token_said(self, seconds_since: float) -> None:
        """A turn got a token so many seconds after the one before."""
        ...

    def turn_ended(self, finish: Finish, completion: int, seconds_to_first: float | None) -> None:
        """A turn ended after `completion` sampled tokens; seconds are from its arrival."""
        ...

    def preempted(self) -> None:
        """A turn gave its place up, and waits for it again."""
        ...

    def refused(self, reason: str) -> None:
        """A request got no place. `reason` is one of `REFUSALS`, or counts as "other"."""
        ...

    def swapped(self, outcome: str, seconds: float) -> None:
        """Another model was to take the place of the one that is served: the `outcome` is one of
        `SWAPS`. It took so many seconds until turns were served again, or the end began.
        """
        ...


class StoreTelemetry(Protocol):
    """Told where rows come from and go to."""

    def restored(self, tier: Tier, tokens: int, nbytes: int, seconds: float) -> None:
        """A turn got `tokens` rows back, from segments of `nbytes`, in so many seconds."""
        ...

    def loaded(self, segments: int, nbytes: int) -> None:
        """So many segments of `nbytes` in all were read from disk."""
        ...

    def stored(self, segments: int, nbytes: int) -> None:
        """So many segments of `nbytes` in all were written to disk."""
        ...

    def evicted(self, tier: Tier, segments: int, nbytes: int) -> None:
        """So many segments (hot: sequences) left `tier`."""
        ...

    def compacted(self, segments: int, nbytes: int) -> None:
        """So many segments were merged into one of `nbytes`, which were written to disk again."""
        ...

    def corrupt(self, problem: str) -> None:
        """A stored segment could not be used."""
        ...

    def compared(self, agreed: bool) -> None:
        """Restored rows were compared with what they said before, and `agreed` or not."""
        ...

    def gauges(self, values: dict[str, float]) -> None:
        """Levels as they are now, by their names in `LEVELS`."""
        ...


class Telemetry(TurnTelemetry, StoreTelemetry, Protocol):
    """Told what happened, as it happens, from any thread. Implementations never raise."""


SWAPS = ("done", "failed", "interrupted")  # failed: the old model is served again
REFUSALS = (
    "too_long",
    "invalid",
    "queue_full",
    "queue_timeout",
    "rate_limit",
    "unauthenticated",
    "forbidden",
    "unavailable",
    "cancelled",
    "other",
)
