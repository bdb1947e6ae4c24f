"""The library with somebody's own adapter for every port, given as an argument."""

from pathlib import Path

import agentcache
from agentcache.adapters.codecs import codec
from agentcache.adapters.memory.clock import ManualClock
from agentcache.adapters.memory.engine import MemoryEngine
from agentcache.adapters.memory.model_source import MemoryModelSource
from agentcache.adapters.memory.segment_store import MemorySegmentStore
from agentcache.adapters.memory.session_store import MemorySessionStore
from agentcache.adapters.memory.telemetry import RecordingTelemetry
from agentcache.adapters.memory.tokenizer import END, VOCABULARY, MemoryTokenizer
from agentcache.domain.request import Tier
from agentcache.ports.model_source import ModelFolder


def test_every_part_can_be_somebody_elses(tmp_path: Path) -> None:
    telemetry, segments = RecordingTelemetry(), MemorySegmentStore()
    model = ModelFolder("toy", tmp_path / "toy", bytes(32))
    adapters = {
        "clock": ManualClock,
        "codec": lambda: codec("f16"),
        "load_engine": lambda: MemoryEngine.of(vocabulary=VOCABULARY, ends=frozenset({END})),
        "load_tokenizer": MemoryTokenizer,
        "model_source": lambda: MemoryModelSource([model]),
        "segments": lambda: segments,
        "sessions": MemorySessionStore,
        "telemetry": lambda: telemetry,
    }
    with agentcache.open("toy", tmp_path / "home", adapters=adapters) as cache:
        agent = cache.agent("ada")
        agent.say("What is in the harbour?", max_tokens=4)
        assert agent.say("And behind it?", max_tokens=4).cache.tier is not Tier.NONE
    assert len(telemetry.started) == 2
    assert segments.nbytes() > 0
    assert sorted(one.name for one in (tmp_path / "home").iterdir()) == ["format", "lock", "models"]
