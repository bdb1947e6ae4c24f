"""What a scrape of /metrics says, read as Prometheus reads it."""

from prometheus_client.parser import text_string_to_metric_families


def samples(text: str) -> dict[str, float]:
    """Every sample by its name and labels, histograms by their count and sum alone."""
    return {
        "/".join([sample.name.removeprefix("agentcache_"), *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith(("_created", "_bucket"))
    }
