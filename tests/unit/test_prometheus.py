"""Prometheus telemetry: what is told is what a scrape shows."""

from threading import Thread

from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from agentcache.adapters.prometheus.metrics import PrometheusTelemetry
from agentcache.domain.request import Finish, Miss, Tier


def _scraped(telemetry: PrometheusTelemetry) -> dict[str, float]:
    body, media_type = telemetry.exposition()
    assert media_type.startswith("text/plain")
    return {
        "/".join([sample.name.removeprefix("agentcache_"), *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def test_everything_that_happened_is_counted() -> None:
    telemetry = PrometheusTelemetry()
    telemetry.forwarded(40)
    telemetry.forwarded(2)
    telemetry.turn_started(prompt=100, cached=60, tier=Tier.WARM, miss=Miss.SYSTEM_CHANGED)
    telemetry.turn_ended(Finish.LENGTH, completion=2, seconds_to_first=0.2)
    telemetry.stored(segments=2, nbytes=4096)
    telemetry.evicted(Tier.COLD, segments=3, nbytes=512)
    telemetry.corrupt("checksum")
    telemetry.gauges({"queued": 1, "hot_bytes": 7.0})
    telemetry.gauges({"queued": 0})
    scraped = _scraped(telemetry)
    expected = {
        "model_tokens_total": 42,
        "prompt_tokens_total": 100,
        "completion_tokens_total": 2,
        "cached_tokens_total/warm": 60,
        "misses_total/system_changed": 1,
        "turns_total/length": 1,
        "time_to_first_token_seconds_count": 1,
        "time_to_first_token_seconds_bucket/0.1": 0,
        "time_to_first_token_seconds_bucket/0.25": 1,
        "stored_segments_total": 2,
        "stored_bytes_total": 4096,
        "evicted_segments_total/cold": 3,
        "evicted_bytes_total/cold": 512,
        "corrupt_segments_total": 1,
        "queued": 0,
        "hot_bytes": 7,
    }
    assert {name: scraped[name] for name in expected} == expected


def test_every_series_is_there_before_anything_happened() -> None:
    scraped = _scraped(PrometheusTelemetry())
    assert all(scraped[f"turns_total/{finish.value}"] == 0 for finish in Finish)
    held = set(Tier) - {Tier.NONE}
    assert all(scraped[f"cached_tokens_total/{tier.value}"] == 0 for tier in held)


def test_a_turn_that_found_all_it_expected_is_no_miss() -> None:
    telemetry = PrometheusTelemetry()
    telemetry.turn_started(prompt=10, cached=9, tier=Tier.HOT, miss=Miss.NONE)
    scraped = _scraped(telemetry)
    misses = {name: value for name, value in scraped.items() if name.startswith("misses_total/")}
    assert len(misses) == len(Miss) - 1
    assert not any(misses.values())


def test_a_turn_without_a_token_has_no_time_to_its_first() -> None:
    telemetry = PrometheusTelemetry()
    telemetry.turn_ended(Finish.FAILED, completion=0, seconds_to_first=None)
    assert _scraped(telemetry)["time_to_first_token_seconds_count"] == 0


def test_two_of_them_share_nothing_and_leave_the_global_registry_alone() -> None:
    one, other = PrometheusTelemetry(), PrometheusTelemetry()
    one.forwarded(5)
    assert _scraped(other)["model_tokens_total"] == 0
    assert not [f.name for f in REGISTRY.collect() if f.name.startswith("agentcache")]


def test_threads_may_tell_at_once() -> None:
    telemetry = PrometheusTelemetry()

    def tell() -> None:
        for step in range(500):
            telemetry.forwarded(1)
            telemetry.gauges({f"level_{step % 5}": 1.0})

    threads = [Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    scraped = _scraped(telemetry)
    assert scraped["model_tokens_total"] == 2000
    assert {scraped[f"level_{level}"] for level in range(5)} == {1.0}


def test_of_very_many_tokens_each_is_counted_once() -> None:
    telemetry = PrometheusTelemetry()
    for _ in range(1500):
        telemetry.forwarded(3, decoded=2, seconds=0.5)
        telemetry.token_said(0.02)
    telemetry.token_said(7)
    for _ in range(2):  # a scrape counts nothing again
        scraped = _scraped(telemetry)
        assert scraped["model_tokens_total"] == 4500
        assert scraped["step_tokens_total/decode"] == 3000
        assert scraped["step_tokens_total/prefill"] == 1500
        assert scraped["step_seconds_total"] == 750
        assert scraped["inter_token_seconds_bucket/0.02"] == 1500
        assert scraped["inter_token_seconds_count"] == 1501
