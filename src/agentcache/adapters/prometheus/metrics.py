"""Telemetry as Prometheus metrics, in a registry of its own. What each means: docs/metrics.md."""

import time
from collections.abc import Callable, Iterable
from threading import Lock

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from agentcache.adapters.prometheus.series import Series
from agentcache.adapters.prometheus.steady import MOST, Steady, Step
from agentcache.domain.request import Finish, Miss, Tier
from agentcache.domain.wear import DailyBytes
from agentcache.ports.telemetry import LEVELS, REFUSALS, SWAPS

_TO_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_BETWEEN = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
_RESTORE = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SWAP = (0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)
_PHASES = ("prefill", "decode")
_MISSES = [miss.value for miss in Miss if miss is not Miss.NONE]
_HELD = [tier.value for tier in Tier if tier is not Tier.NONE]
_ENCODED = [Tier.WARM.value, Tier.COLD.value]


class PrometheusTelemetry:
    """Counts what it is told; safe from any thread.

    The series of every label exist from the start, so that a rate over them sees the first event.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self._monotonic = monotonic
        self._wear = DailyBytes()
        self._lock = Lock()
        self._steady = Steady(self._settle)
        self.registry.register(self._steady)  # before the others, which it brings up to date
        make = Series(self.registry)
        self._make_turns(make)
        self._make_store(make)
        self._levels = {name: make.gauge(name, text) for name, text in LEVELS.items()}

    def _make_turns(self, make: Series) -> None:
        finishes = [finish.value for finish in Finish]
        self._model = make.counter("model_tokens", "Tokens passed to the model.")
        self._steps = make.counters(
            "step_tokens", "Tokens passed to the model, by what for.", "phase", _PHASES
        )
        self._busy = make.counter("step_seconds", "Time spent in steps of the engine.")
        self._turns = make.counters("turns", "Turns that ended.", "finish", finishes)
        self._prompt = make.counter("prompt_tokens", "Tokens of all prompts.")
        self._completion = make.counter("completion_tokens", "Tokens sampled.")
        self._cached = make.counters(
            "cached_tokens", "Prompt tokens not computed again.", "tier", _HELD
        )
        self._hits = make.counters("hits", "Turns that began with kept rows.", "tier", _HELD)
        self._misses = make.counters(
            "misses", "Turns that did not find all they expected.", "reason", _MISSES
        )
        self._first = make.histogram(
            "time_to_first_token_seconds",
            "From the arrival of a turn to its first token.",
            _TO_FIRST,
        )
        self._between = make.histogram(
            "inter_token_seconds", "From one token of a turn to the next.", _BETWEEN
        )
        self._preempted = make.counter("preemptions", "Turns that gave their place up for a while.")
        self._refused = make.counters("refused", "Requests that got no place.", "reason", REFUSALS)
        self._swaps = make.histograms(
            "swap_seconds",
            "From the wish for another model until turns are served again.",
            "outcome",
            SWAPS,
            _SWAP,
        )

    def _make_store(self, make: Series) -> None:
        self._restored = make.histograms(
            "restore_seconds", "Time until a turn had its rows back.", "tier", _HELD, _RESTORE
        )
        self._restored_tokens = make.counters(
            "restored_tokens", "Rows that turns got back.", "tier", _HELD
        )
        self._restored_bytes = make.counters(
            "restored_bytes",
            "Encoded bytes of the segments that rows came back from.",
            "tier",
            _ENCODED,
        )
        self._loaded = make.counter("loaded_segments", "Segments read from disk.")
        self._loaded_bytes = make.counter("loaded_bytes", "Bytes of segments read from disk.")
        self._stored = make.counter("stored_segments", "Segments written to disk.")
        self._stored_bytes = make.counter("stored_bytes", "Bytes of segments written to disk.")
        self._compacted = make.counter("compacted_segments", "Segments merged into longer ones.")
        self._compacted_bytes = make.counter(
            "compacted_bytes", "Bytes of segments written again because they were merged."
        )
        wear = make.gauge("stored_bytes_last_day", "Bytes of segments written in the last day.")
        wear.set_function(self._last_day)
        self._evicted = make.counters(
            "evicted_segments", "Segments (hot: sequences) that had to leave.", "tier", _HELD
        )
        self._evicted_bytes = make.counters(
            "evicted_bytes", "Bytes that had to leave.", "tier", _HELD
        )
        self._corrupt = make.counter(
            "corrupt_segments", "Stored segments that were not usable and were set aside."
        )

        self._canaries = make.counters(
            "canaries",
            "Restored sessions compared with what they said before.",
            "outcome",
            ("agreed", "differed"),
        )

    # -- of turns ----------------------------------------------------------------------------

    def forwarded(self, tokens: int, decoded: int = 0, seconds: float = 0.0) -> None:
        """A step passed so many tokens to the model."""
        steps = self._steady.steps
        steps.append((tokens, decoded, seconds))
        if len(steps) >= MOST:
            self._steady.count()

    def turn_started(self, prompt: int, cached: int, tier: Tier, miss: Miss) -> None:
        """A turn of `prompt` tokens starts with `cached` of them served from `tier`."""
        self._prompt.inc(prompt)
        if cached and tier is not Tier.NONE:
            self._cached[tier.value].inc(cached)
            self._hits[tier.value].inc()
        if miss is not Miss.NONE:
            self._misses[miss.value].inc()

    def token_said(self, seconds_since: float) -> None:
        """A turn got a token so many seconds after the one before."""
        gaps = self._steady.gaps
        gaps.append(seconds_since)
        if len(gaps) >= MOST:
            self._steady.count()

    def turn_ended(self, finish: Finish, completion: int, seconds_to_first: float | None) -> None:
        """A turn ended after `completion` sampled tokens."""
        self._turns[finish.value].inc()
        self._completion.inc(completion)
        if seconds_to_first is not None:
            self._first.observe(seconds_to_first)

    def preempted(self) -> None:
        """A turn gave its place up."""
        self._preempted.inc()

    def refused(self, reason: str) -> None:
        """A request got no place; what is no known reason has no bounds, so it is no label."""
        self._refused[reason if reason in REFUSALS else "other"].inc()

    def swapped(self, outcome: str, seconds: float) -> None:
        """One model was to take the place of another."""
        self._swaps[outcome].observe(seconds)

    # -- of rows -----------------------------------------------------------------------------

    def restored(self, tier: Tier, tokens: int, nbytes: int, seconds: float) -> None:
        """A turn got rows back."""
        self._restored[tier.value].observe(seconds)
        self._restored_tokens[tier.value].inc(tokens)
        if tier is not Tier.HOT:  # which holds no encoded bytes
            self._restored_bytes[tier.value].inc(nbytes)

    def loaded(self, segments: int, nbytes: int) -> None:
        """So many segments of `nbytes` in all were read from disk."""
        self._loaded.inc(segments)
        self._loaded_bytes.inc(nbytes)

    def stored(self, segments: int, nbytes: int) -> None:
        """So many segments of `nbytes` in all were written to disk."""
        self._stored.inc(segments)
        self._stored_bytes.inc(nbytes)
        with self._lock:
            self._wear.add(nbytes, self._monotonic())

    def compacted(self, segments: int, nbytes: int) -> None:
        """So many segments were merged into one of `nbytes`."""
        self._compacted.inc(segments)
        self._compacted_bytes.inc(nbytes)
        with self._lock:
            self._wear.add(nbytes, self._monotonic())

    def evicted(self, tier: Tier, segments: int, nbytes: int) -> None:
        """So many segments left `tier`."""
        self._evicted[tier.value].inc(segments)
        self._evicted_bytes[tier.value].inc(nbytes)

    def corrupt(self, problem: str) -> None:
        """A stored segment could not be used; `problem` has no bounds, so it is no label."""
        self._corrupt.inc()

    def compared(self, agreed: bool) -> None:
        """Restored rows were compared with what they said before."""
        self._canaries["agreed" if agreed else "differed"].inc()

    def gauges(self, values: dict[str, float]) -> None:
        """Levels as they are now."""
        with self._lock:
            for name in values.keys() - self._levels.keys():
                self._levels[name] = Gauge(
                    f"agentcache_{name}", f"{name} at the moment.", registry=self.registry
                )
        for name, value in values.items():
            self._levels[name].set(value)

    def exposition(self) -> tuple[bytes, str]:
        """All metrics in Prometheus' text format, and its media type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def _settle(self, steps: Iterable[Step], gaps: Iterable[float]) -> None:
        """Count the steps and the seconds between tokens that were told of."""
        tokens, decoded, seconds = (sum(column) for column in zip((0, 0, 0.0), *steps, strict=True))
        self._model.inc(tokens)
        self._steps["prefill"].inc(tokens - decoded)
        self._steps["decode"].inc(decoded)
        self._busy.inc(seconds)
        for gap in gaps:
            self._between.observe(gap)

    def _last_day(self) -> float:
        with self._lock:
            return self._wear.total(self._monotonic())
