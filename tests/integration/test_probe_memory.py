"""What was found out about a model is found out once, as long as nothing changes."""

from pathlib import Path

import numpy as np
import pytest
from attrs import evolve

from agentcache.adapters.mlx import blas
from agentcache.testing.driving import Driver
from tests.tiny_models import tiny_llama
from tests.tiny_shapes import SHAPES, UNKNOWN, Shape

blas.load()

from agentcache.adapters.mlx import probe_memory  # noqa: E402
from agentcache.adapters.mlx.engine import MLXEngine  # noqa: E402
from agentcache.adapters.mlx.probe_memory import ProbeMemory  # noqa: E402

PROMPT = [7 * n % 250 + 3 for n in range(40)]
DIGEST = b"\7" * 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), seed=3)


def _load(folder: Path, probes: Path, cpu_path: bool = True) -> MLXEngine:
    return MLXEngine.load(folder, DIGEST, "tiny", cpu_path=cpu_path, probes=probes)


def _is_known(folder: Path, probes: Path, cpu_path: bool = True) -> bool:
    engine = _load(folder, probes, cpu_path)
    engine.close()
    return engine.known


@pytest.mark.parametrize("shape", (ALL := SHAPES | UNKNOWN).values(), ids=ALL)
def test_a_model_that_is_known_is_served_as_it_was_when_it_was_found_out(
    tmp_path: Path, shape: Shape
) -> None:
    folder, probes, said = shape.made(tmp_path / "model"), tmp_path / "probes", []
    for known in (False, True):
        engine = _load(folder, probes)
        assert engine.known is known
        driver = Driver(engine)
        driver.begin(1, PROMPT)
        driver.begin(2, PROMPT[:7])
        said.append((driver.decode(1, 2, steps=5), engine.card, engine.report))
        assert [layer.reason for layer in engine.card.spec.layers] == [
            layer.reason for layer in said[0][1].spec.layers
        ]
        engine.close()
    assert said[0] == said[1]


def test_a_model_that_is_known_runs_no_token_before_it_is_asked_to(
    folder: Path, tmp_path: Path
) -> None:
    _load(folder, tmp_path).close()
    engine = _load(folder, tmp_path)
    assert Driver(engine).engine._loaded.forward.tokens == 0
    engine.close()


def test_with_other_packages_it_is_found_out_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not _is_known(folder, tmp_path)
    assert _is_known(folder, tmp_path)
    monkeypatch.setattr(probe_memory, "version", lambda name: f"another {name}")
    assert not _is_known(folder, tmp_path)


def test_without_the_cpu_path_it_is_found_out_anew(folder: Path, tmp_path: Path) -> None:
    assert not _is_known(folder, tmp_path, cpu_path=True)
    assert not _is_known(folder, tmp_path, cpu_path=False)
    assert _is_known(folder, tmp_path, cpu_path=False)


def test_what_was_found_out_about_a_model_of_other_layers_is_not_used(
    folder: Path, tmp_path: Path
) -> None:
    engine = _load(tiny_llama(tmp_path / "other", seed=1, layers=5), tmp_path / "probes")
    engine.close()
    again = _load(folder, tmp_path / "probes")
    assert not again.known
    assert len(again.card.spec.layers) == 2
    again.close()


@pytest.fixture(scope="module")
def written(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, ProbeMemory]:
    probes = tmp_path_factory.mktemp("probes")
    _load(folder, probes).close()
    memory = ProbeMemory(probes, DIGEST, on_cpu=True)
    assert memory.recall() is not None
    return next(probes.iterdir()).read_bytes(), memory


def _recalled(content: bytes, memory: ProbeMemory, tmp_path: Path) -> object:
    (tmp_path / f"{DIGEST.hex()}.json").write_bytes(content)
    return evolve(memory, folder=tmp_path).recall()


def test_a_file_that_was_cut_off_anywhere_is_not_believed(
    written: tuple[bytes, ProbeMemory], tmp_path: Path
) -> None:
    content, memory = written
    for stop in range(0, len(content), 7):
        assert _recalled(content[:stop], memory, tmp_path) is None
    assert _recalled(content, memory, tmp_path) is not None


def test_a_file_with_a_flipped_bit_anywhere_is_not_believed_to_say_something_else(
    written: tuple[bytes, ProbeMemory], tmp_path: Path
) -> None:
    content, memory = written
    sound = _recalled(content, memory, tmp_path)
    draw = np.random.default_rng(1)
    for at in draw.integers(0, len(content), 400):
        broken = bytearray(content)
        broken[at] ^= 1 << int(draw.integers(0, 8))
        assert _recalled(bytes(broken), memory, tmp_path) in (None, sound)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'{"check":"","body":{}}',
        b"\xff" * 50,
        b"[" * 100_000,
        b" " * (5 << 20),
    ],
    ids=["empty", "null", "a list", "no body", "no text", "deep", "huge"],
)
def test_a_file_of_something_else_is_not_believed(
    written: tuple[bytes, ProbeMemory], tmp_path: Path, content: bytes
) -> None:
    assert _recalled(content, written[1], tmp_path) is None


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert not _is_known(folder, tmp_path / "file" / "probes")
    assert not _is_known(folder, tmp_path / "file" / "probes")


def test_only_its_owner_can_read_what_is_remembered(folder: Path, tmp_path: Path) -> None:
    probes = tmp_path / "probes"
    _load(folder, probes).close()
    assert probes.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in probes.iterdir()] == [0o600]
