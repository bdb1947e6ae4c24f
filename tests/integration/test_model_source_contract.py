"""The contract of model sources, over every adapter."""

from pathlib import Path

import pytest

from agentcache.adapters.memory.model_source import MemoryModelSource
from agentcache.adapters.models import LocalModelSource
from agentcache.adapters.models.hub import Hub
from agentcache.ports.model_source import ModelFolder, ModelSource
from agentcache.testing.model_source import ModelSourceContract, quiet
from tests.tiny_gguf import TinyGguf, weights


def memory(tmp_path: Path) -> ModelSource:
    """Two models, ready."""
    return MemoryModelSource(
        ModelFolder(name, tmp_path / name, name.encode().ljust(32)) for name in ("one", "two")
    )


def local(tmp_path: Path) -> ModelSource:
    """Two models, converted."""
    source = LocalModelSource(tmp_path / "home", hub=Hub(tmp_path / "hub", "http://127.0.0.1:9"))
    for seed, name in enumerate(("one", "two")):
        gguf = TinyGguf(weights=weights(seed)).write(tmp_path / f"{name}.gguf")
        source.resolve(str(gguf), quiet)
    return source


class TestModelSources(ModelSourceContract):
    @pytest.fixture(params=[memory, local])
    def source(self, request: pytest.FixtureRequest, tmp_path: Path) -> ModelSource:
        made: ModelSource = request.param(tmp_path)
        return made
