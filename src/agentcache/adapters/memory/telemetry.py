"""Telemetry that only remembers, and telemetry that does not even do that."""

from threading import Lock

from attrs import define, field, frozen

from agentcache.domain.request import Finish, Miss, Tier


@frozen
class TurnStarted:
    """What `turn_started` was told."""

    prompt: int
    cached: int
    tier: Tier
    miss: Miss


@frozen
class TurnEnded:
    """What `turn_ended` was told."""

    finish: Finish
    completion: int
    seconds_to_first: float | None


@frozen
class Restored:
    """What `restored` was told."""

    tier: Tier
    tokens: int
    nbytes: int
    seconds: float


@define(eq=False)
class RecordingTelemetry:
    """Telemetry that can be asked afterwards; counts are totals, `levels` the last gauges."""

    tokens_forwarded: int = 0
    tokens_decoded: int = 0
    step_seconds: float = 0.0
    gaps: list[float] = field(factory=list)
    preemptions: int = 0
    refusals: list[str] = field(factory=list)
    swaps: list[tuple[str, float]] = field(factory=list)
    restores: list[Restored] = field(factory=list)
    segments_loaded: int = 0
    bytes_loaded: int = 0
    started: list[TurnStarted] = field(factory=list)
    ended: list[TurnEnded] = field(factory=list)
    segments_stored: int = 0
    bytes_stored: int = 0
    evictions: list[tuple[Tier, int, int]] = field(factory=list)
    compactions: list[tuple[int, int]] = field(factory=list)
    problems: list[str] = field(factory=list)
    comparisons: list[bool] = field(factory=list)
    levels: dict[str, float] = field(factory=dict)
    _lock: Lock = field(factory=Lock, repr=False)

    def forwarded(self, tokens: int, decoded: int = 0, seconds: float = 0.0) -> None:
        """Add to `tokens_forwarded`, `tokens_decoded` and `step_seconds`."""
        with self._lock:
            self.tokens_forwarded += tokens
            self.tokens_decoded += decoded
            self.step_seconds += seconds

    def turn_started(self, prompt: int, cached: int, tier: Tier, miss: Miss) -> None:
        """Append to `started`."""
        self.started.append(TurnStarted(prompt, cached, tier, miss))

    def token_said(self, seconds_since: float) -> None:
        """Append to `gaps`."""
        self.gaps.append(seconds_since)

    def turn_ended(self, finish: Finish, completion: int, seconds_to_first: float | None) -> None:
        """Append to `ended`."""
        self.ended.append(TurnEnded(finish, completion, seconds_to_first))

    def preempted(self) -> None:
        """Add to `preemptions`."""
        with self._lock:
            self.preemptions += 1

    def refused(self, reason: str) -> None:
        """Append to `refusals`."""
        self.refusals.append(reason)

    def swapped(self, outcome: str, seconds: float) -> None:
        """Append to `swaps`."""
        self.swaps.append((outcome, seconds))

    def restored(self, tier: Tier, tokens: int, nbytes: int, seconds: float) -> None:
        """Append to `restores`."""
        self.restores.append(Restored(tier, tokens, nbytes, seconds))

    def loaded(self, segments: int, nbytes: int) -> None:
        """Add to `segments_loaded` and `bytes_loaded`."""
        with self._lock:
            self.segments_loaded += segments
            self.bytes_loaded += nbytes

    def stored(self, segments: int, nbytes: int) -> None:
        """Add to `segments_stored` and `bytes_stored`."""
        with self._lock:
            self.segments_stored += segments
            self.bytes_stored += nbytes

    def evicted(self, tier: Tier, segments: int, nbytes: int) -> None:
        """Append to `evictions`."""
        self.evictions.append((tier, segments, nbytes))

    def compacted(self, segments: int, nbytes: int) -> None:
        """Append to `compactions`."""
        self.compactions.append((segments, nbytes))

    def corrupt(self, problem: str) -> None:
        """Append to `problems`."""
        self.problems.append(problem)

    def compared(self, agreed: bool) -> None:
        """Append to `comparisons`."""
        self.comparisons.append(agreed)

    def gauges(self, values: dict[str, float]) -> None:
        """Take over into `levels`."""
        with self._lock:
            self.levels.update(values)


class NullTelemetry:
    """Telemetry that nobody looks at."""

    def forwarded(self, tokens: int, decoded: int = 0, seconds: float = 0.0) -> None:
        """Forget it."""

    def token_said(self, seconds_since: float) -> None:
        """Forget it."""

    def preempted(self) -> None:
        """Forget it."""

    def refused(self, reason: str) -> None:
        """Forget it."""

    def swapped(self, outcome: str, seconds: float) -> None:
        """Forget it."""

    def restored(self, tier: Tier, tokens: int, nbytes: int, seconds: float) -> None:
        """Forget it."""

    def loaded(self, segments: int, nbytes: int) -> None:
        """Forget it."""

    def turn_started(self, prompt: int, cached: int, tier: Tier, miss: Miss) -> None:
        """Forget it."""

    def turn_ended(self, finish: Finish, completion: int, seconds_to_first: float | None) -> None:
        """Forget it."""

    def stored(self, segments: int, nbytes: int) -> None:
        """Forget it."""

    def evicted(self, tier: Tier, segments: int, nbytes: int) -> None:
        """Forget it."""

    def compacted(self, segments: int, nbytes: int) -> None:
        """Forget it."""

    def corrupt(self, problem: str) -> None:
        """Forget it."""

    def compared(self, agreed: bool) -> None:
        """Forget it."""

    def gauges(self, values: dict[str, float]) -> None:
        """Forget it."""
