"""What every telemetry promises: it takes whatever it is told, from any thread."""

from collections.abc import Callable
from threading import Thread

import pytest

from agentcache.domain.request import Finish, Miss, Tier
from agentcache.ports.telemetry import LEVELS, REFUSALS, SWAPS, Telemetry


def report(telemetry: Telemetry) -> None:
    """Tell `telemetry` one of everything."""
    telemetry.forwarded(3)
    telemetry.forwarded(5, decoded=2, seconds=0.1)
    telemetry.turn_started(10, 7, Tier.WARM, Miss.NONE)
    telemetry.token_said(0.05)
    telemetry.turn_ended(Finish.STOP, 5, 0.25)
    telemetry.turn_ended(Finish.LENGTH, 0, None)
    telemetry.preempted()
    for reason in (*REFUSALS, "a reason of tomorrow"):
        telemetry.refused(reason)
    for outcome in SWAPS:
        telemetry.swapped(outcome, 1.5)
    telemetry.restored(Tier.COLD, 7, 100, 0.01)
    telemetry.loaded(1, 100)
    telemetry.stored(2, 100)
    telemetry.evicted(Tier.HOT, 1, 50)
    telemetry.compacted(3, 100)
    telemetry.corrupt("a bad checksum")
    telemetry.compared(agreed=True)
    telemetry.compared(agreed=False)
    telemetry.gauges(dict.fromkeys(LEVELS, 1.0))


class TelemetryContract:
    """Subclass it, and override the fixture `telemetry`."""

    @pytest.fixture
    def telemetry(self) -> Telemetry:
        """The telemetry under test."""
        raise NotImplementedError("override the fixture `telemetry`")

    def test_it_takes_whatever_it_is_told(self, telemetry: Telemetry) -> None:
        report(telemetry)

    def test_it_never_raises(self, telemetry: Telemetry) -> None:
        wild: list[Callable[[], None]] = [
            lambda: telemetry.gauges({}),
            lambda: telemetry.gauges({"queued": -1.0}),
            lambda: telemetry.gauges({"queued": float("nan")}),
            lambda: telemetry.corrupt("\ud800 \0 \n" * 1000),
            lambda: telemetry.turn_ended(Finish.STOP, 0, 0.0),
            lambda: telemetry.stored(0, 0),
        ]
        for tell in wild:
            tell()

    def test_several_threads_tell_at_once(self, telemetry: Telemetry) -> None:
        failed: list[BaseException] = []

        def tell() -> None:
            try:
                for _ in range(50):
                    report(telemetry)
            except BaseException as error:
                failed.append(error)

        threads = [Thread(target=tell) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
