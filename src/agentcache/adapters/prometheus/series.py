"""Series of metrics: every value of a label has its own from the start."""

from collections.abc import Iterable, Mapping, Sequence

from attrs import frozen
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


@frozen(eq=False)
class Series:
    """Makes metrics in `registry`, whose names begin with agentcache."""

    registry: CollectorRegistry

    def counter(self, name: str, text: str) -> Counter:
        """A counter without a label."""
        return Counter(f"agentcache_{name}", text, registry=self.registry)

    def counters(
        self, name: str, text: str, label: str, values: Iterable[str]
    ) -> Mapping[str, Counter]:
        """A counter for each value of `label`."""
        counter = Counter(f"agentcache_{name}", text, [label], registry=self.registry)
        return {value: counter.labels(value) for value in values}

    def gauge(self, name: str, text: str) -> Gauge:
        """A gauge without a label."""
        return Gauge(f"agentcache_{name}", text, registry=self.registry)

    def histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        """A histogram without a label."""
        return Histogram(f"agentcache_{name}", text, registry=self.registry, buckets=buckets)

    def histograms(
        self, name: str, text: str, label: str, values: Iterable[str], buckets: Sequence[float]
    ) -> Mapping[str, Histogram]:
        """A histogram for each value of `label`."""
        found = Histogram(
            f"agentcache_{name}", text, [label], registry=self.registry, buckets=buckets
        )
        return {value: found.labels(value) for value in values}
