"""Telemetry as Prometheus metrics, in a registry of its own."""

from collections.abc import Iterable
from enum import Enum
from threading import Lock

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from agentcache.domain.request import Finish, Miss, Tier

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_MISSES = [miss for miss in Miss if miss is not Miss.NONE]


class PrometheusTelemetry:
    """Counts what it is told; safe from any thread.

    The series of every label exist from the start, so that a rate over them sees the first event.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._model = _counter(registry, "model_tokens", "Tokens passed to the model.")
        self._turns = _labelled(registry, "turns", "Turns that ended.", "finish", Finish)
        self._prompt = _counter(registry, "prompt_tokens", "Tokens of all prompts.")
        self._completion = _counter(registry, "completion_tokens", "Tokens sampled.")
        self._cached = _labelled(
            registry, "cached_tokens", "Prompt tokens not computed again.", "tier", Tier
        )
        self._misses = _labelled(
            registry, "misses", "Turns that did not find all they expected.", "reason", _MISSES
        )
        self._first = Histogram(
            "agentcache_time_to_first_token_seconds",
            "From the arrival of a turn to its first token.",
            registry=registry,
            buckets=_SECONDS,
        )
        self._stored = _counter(registry, "stored_segments", "Segments written to disk.")
        self._stored_bytes = _counter(
            registry, "stored_bytes", "Bytes of segments written to disk."
        )
        self._evicted = _labelled(
            registry, "evicted_segments", "Segments that had to leave.", "tier", Tier
        )
        self._evicted_bytes = _labelled(
            registry, "evicted_bytes", "Bytes that had to leave.", "tier", Tier
        )
        self._corrupt = _counter(registry, "corrupt_segments", "Stored segments not usable.")
        self._gauges: dict[str, Gauge] = {}
        self._gauges_lock = Lock()

    def forwarded(self, tokens: int) -> None:
        """So many tokens were passed to the model."""
        self._model.inc(tokens)

    def turn_started(self, prompt: int, cached: int, tier: Tier, miss: Miss) -> None:
        """A turn of `prompt` tokens starts with `cached` of them served from `tier`."""
        self._prompt.inc(prompt)
        self._cached.labels(tier.value).inc(cached)
        if miss is not Miss.NONE:
            self._misses.labels(miss.value).inc()

    def turn_ended(self, finish: Finish, completion: int, seconds_to_first: float | None) -> None:
        """A turn ended after `completion` sampled tokens."""
        self._turns.labels(finish.value).inc()
        self._completion.inc(completion)
        if seconds_to_first is not None:
            self._first.observe(seconds_to_first)

    def stored(self, segments: int, nbytes: int) -> None:
        """So many segments of `nbytes` in all were written to disk."""
        self._stored.inc(segments)
        self._stored_bytes.inc(nbytes)

    def evicted(self, tier: Tier, segments: int, nbytes: int) -> None:
        """So many segments left `tier`."""
        self._evicted.labels(tier.value).inc(segments)
        self._evicted_bytes.labels(tier.value).inc(nbytes)

    def corrupt(self, problem: str) -> None:
        """A stored segment could not be used; `problem` has no bounds, so it is no label."""
        self._corrupt.inc()

    def gauges(self, values: dict[str, float]) -> None:
        """Levels as they are now."""
        with self._gauges_lock:
            for name in values.keys() - self._gauges.keys():
                self._gauges[name] = Gauge(
                    f"agentcache_{name}", f"{name} at the moment.", registry=self.registry
                )
        for name, value in values.items():
            self._gauges[name].set(value)

    def exposition(self) -> tuple[bytes, str]:
        """All metrics in Prometheus' text format, and its media type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


def _counter(registry: CollectorRegistry, name: str, help_text: str) -> Counter:
    return Counter(f"agentcache_{name}", help_text, registry=registry)


def _labelled(
    registry: CollectorRegistry, name: str, help_text: str, label: str, values: Iterable[Enum]
) -> Counter:
    counter = Counter(f"agentcache_{name}", help_text, [label], registry=registry)
    for value in values:
        counter.labels(value.value)
    return counter
