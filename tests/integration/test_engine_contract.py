"""The contract of engines, over every kind of them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from agentcache.adapters.memory.engine import MemoryEngine
from agentcache.adapters.memory.hash_model import hash_spec
from agentcache.ports.engine import Engine
from agentcache.testing.engine import EngineContract
from tests.tiny_models import tiny_llama

from agentcache.adapters.mlx.engine import MLXEngine  # isort: skip  (after the BLAS)

KINDS: dict[str, Callable[[Path], Engine]] = {
    "memory": lambda _: MemoryEngine.of(),
    "memory, two in flight": lambda _: MemoryEngine.of(in_flight=2),
    "memory, window and state": lambda _: MemoryEngine.of(spec=hash_spec(2, 4, True)),
    "mlx, numpy buffers": lambda folder: MLXEngine.load(folder, b"tiny", "tiny"),
    "mlx, its own caches": lambda folder: MLXEngine.load(folder, b"tiny", "tiny", cpu_path=False),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), seed=1)


class TestEngines(EngineContract):
    @pytest.fixture(params=list(KINDS))
    def engine(self, request: pytest.FixtureRequest, folder: Path) -> Engine:
        return KINDS[request.param](folder)
