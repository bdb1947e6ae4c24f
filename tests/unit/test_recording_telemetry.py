"""Telemetry that remembers: totals are totals, also when several threads report at once."""

from threading import Thread

from agentcache.adapters.memory.telemetry import RecordingTelemetry, TurnStarted
from agentcache.domain.request import Finish, Miss, Tier
from agentcache.ports.telemetry import Telemetry


def report(telemetry: Telemetry) -> None:
    telemetry.forwarded(3)
    telemetry.turn_started(10, 7, Tier.WARM, Miss.NONE)
    telemetry.turn_ended(Finish.STOP, 5, 0.25)
    telemetry.stored(2, 100)
    telemetry.evicted(Tier.COLD, 1, 50)
    telemetry.corrupt("a bad checksum")
    telemetry.gauges({"queued": 1.0})


def test_totals_add_up_over_threads():
    telemetry = RecordingTelemetry()
    threads = [Thread(target=lambda: [report(telemetry) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert telemetry.tokens_forwarded == 600
    assert (telemetry.segments_stored, telemetry.bytes_stored) == (400, 20_000)
    assert telemetry.started == [TurnStarted(10, 7, Tier.WARM, Miss.NONE)] * 200
    assert len(telemetry.ended) == len(telemetry.evictions) == len(telemetry.problems) == 200
    assert telemetry.levels == {"queued": 1.0}
