"""The contract of telemetry, over every adapter."""

import pytest

from agentcache.adapters.memory.telemetry import NullTelemetry, RecordingTelemetry
from agentcache.adapters.prometheus.metrics import PrometheusTelemetry
from agentcache.ports.telemetry import Telemetry
from agentcache.testing.telemetry import TelemetryContract


class TestEveryTelemetry(TelemetryContract):
    @pytest.fixture(params=[NullTelemetry, RecordingTelemetry, PrometheusTelemetry])
    def telemetry(self, request: pytest.FixtureRequest) -> Telemetry:
        made: Telemetry = request.param()
        return made
