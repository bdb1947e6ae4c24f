"""Memory of live rows: used again while nobody else has it, and never more than may be held."""

import gc
import resource
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcache import mapped_memory
from agentcache.adapters.mlx import blas
from agentcache.container import open_model
from agentcache.domain.plan import PrefillChunk
from agentcache.domain.tokens import tokens
from agentcache.mapped_memory import MappedMemory
from agentcache.ports.model_source import ModelFolder
from agentcache.settings import Settings
from agentcache.testing.driving import GREEDY, Driver
from tests.tiny_models import tiny_llama

blas.load()

from agentcache.adapters.mlx.engine import MLXEngine  # noqa: E402

MB = 1 << 20
F32 = np.dtype(np.float32)
PROMPT = [7 * n % 250 + 3 for n in range(60)]


def _floats(nbytes: int) -> tuple[int, ...]:
    return (nbytes // 4,)


def _faults(work: Callable[[], object]) -> int:
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def _ready(memory: MappedMemory, held: int = 0) -> None:
    while memory.prepare(held):
        memory.check_integrity()


def test_memory_that_came_back_is_written_to_without_a_page_fault() -> None:
    memory = MappedMemory.of(256 * MB)
    buffer = memory.empty(_floats(16 * MB), F32)
    assert _faults(partial(buffer.fill, 1)) >= 8
    del buffer
    again = memory.empty(_floats(16 * MB), F32)
    assert _faults(partial(again.fill, 2)) < 8


def test_memory_that_was_made_ready_is_written_to_without_a_page_fault() -> None:
    memory = MappedMemory.of(256 * MB)
    _ready(memory)
    buffer = memory.empty(_floats(16 * MB), F32)
    assert _faults(partial(buffer.fill, 1)) < 8


def test_no_more_is_made_ready_than_the_reserve() -> None:
    memory = MappedMemory.of(80 * MB)
    _ready(memory)
    assert memory.spare == memory.reserve == 10 * MB


def test_nothing_is_kept_beyond_what_live_rows_leave() -> None:
    memory = MappedMemory.of(80 * MB)
    _ready(memory)
    memory.settle(held=77 * MB)
    assert memory.spare == 3 * MB
    assert not memory.prepare(held=77 * MB)
    memory.settle(held=90 * MB)
    assert memory.spare == 0


def test_what_is_beyond_the_reserve_goes_back_to_the_system() -> None:
    memory = MappedMemory.of(80 * MB)
    buffer = memory.empty(_floats(40 * MB), F32)
    buffer.fill(1)
    del buffer
    memory.settle(held=0)
    assert memory.spare == memory.reserve
    again = memory.empty(_floats(40 * MB), F32)
    assert _faults(partial(again.fill, 1)) >= 10


def test_memory_is_not_lent_again_while_a_view_lies_in_it() -> None:
    memory = MappedMemory.of(64 * MB)
    buffer = memory.empty((4, MB), F32)
    buffer.fill(1)
    view = buffer[1:2, 10:]
    del buffer
    gc.collect()
    other = memory.empty((4, MB), F32)
    other.fill(2)
    assert not np.shares_memory(view, other)
    assert (view == 1).all()
    memory.check_integrity()


def test_a_loan_may_end_on_another_thread() -> None:
    memory = MappedMemory.of(64 * MB)
    buffers = [memory.empty(_floats(8 * MB), F32)]
    place = buffers[0].ctypes.data
    other = threading.Thread(target=buffers.clear)
    other.start()
    other.join()
    assert memory.empty(_floats(8 * MB), F32).ctypes.data == place


@pytest.mark.parametrize("memory", [MappedMemory.plain(), MappedMemory.of(0)])
def test_without_a_budget_buffers_come_from_numpy(memory: MappedMemory) -> None:
    buffer = memory.empty((3, MB), F32)
    buffer.fill(1)
    assert buffer.flags.owndata
    assert not memory.prepare(0)
    memory.settle(buffer.nbytes)
    memory.check_integrity()


def test_where_the_system_sets_memory_aside_for_addresses_buffers_come_from_numpy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = tmp_path / "overcommit_memory"
    never.write_text("2\n")
    monkeypatch.setattr(mapped_memory, "_OVERCOMMIT", never)
    assert MappedMemory.of(64 * MB).empty((3, MB), F32).flags.owndata


def test_where_no_addresses_are_left_buffers_come_from_numpy() -> None:
    memory = MappedMemory.of(16 * MB)
    first = memory.empty(_floats(24 * MB), F32)
    second = memory.empty(_floats(24 * MB), F32)
    second.fill(2)
    first.fill(1)
    assert (second == 2).all()
    memory.check_integrity()


@given(st.lists(st.tuples(st.sampled_from("takedropsettleprepare"), st.integers(0, 24))))
def test_buffers_keep_their_values_and_bounds_hold_whatever_comes_and_goes(
    actions: list[tuple[str, int]],
) -> None:
    memory, live = MappedMemory.of(32 * MB), list[tuple[int, np.ndarray]]()
    for number, (action, size) in enumerate(actions):
        held = sum(buffer.nbytes for _, buffer in live)
        if action in "take":
            buffer = memory.empty((size + 1, MB // 4), F32)
            buffer[:, ::4096] = number
            live.append((number, buffer))
        elif action in "drop" and live:
            live.pop(size % len(live))
        elif action in "settle":
            memory.settle(held)
            assert memory.spare <= max(0, min(memory.reserve, memory.limit - held))
        else:
            memory.prepare(held)
        memory.check_integrity()
    assert all((buffer[:, ::4096] == number).all() for number, buffer in live)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("llama")
    return tiny_llama(made, seed=3, layers=3, heads=6, kv_heads=2, hidden=96, context=16_384)


def test_a_sequence_says_the_same_in_memory_that_another_left(folder: Path) -> None:
    capacity, said = 8192, []
    for memory in (None, MappedMemory.of(64 * MB)):
        engine = MLXEngine.load(folder, b"tiny", "tiny", memory=memory)
        driver = Driver(engine)
        rows = engine.start(1, capacity, capacity)
        places = {array.ctypes.data for array in rows.full.values()}
        for array in rows.full.values():
            array.view(np.float32)[...] = np.nan
        del rows, array
        engine.drop(1)
        engine.start(2, capacity)
        kept = engine.export(2, 0, 0).full.values()
        assert memory is None or {array.ctypes.data for array in kept} == places
        chunk = PrefillChunk(2, 0, tokens(PROMPT), GREEDY)
        first = driver.step(chunk).sampled[0].token
        said.append([first, *driver.decode(2, steps=8)[0]])
        engine.close()
    assert said[0] == said[1]


def test_memory_is_made_ready_while_a_model_is_loaded(folder: Path, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, memory_budget="64MiB")
    engine = open_model(ModelFolder(str(folder), folder, b"x" * 32), settings, tmp_path)
    for thread in threading.enumerate():
        if thread.name == "agentcache-memory":
            thread.join()
    assert isinstance(engine, MLXEngine)
    assert engine.memory.spare == engine.memory.reserve > 0
    engine.close()


def test_an_engine_at_rest_holds_no_more_than_its_budget(folder: Path) -> None:
    memory = MappedMemory.of(32 * MB)
    engine = MLXEngine.load(folder, b"tiny", "tiny", memory=memory)
    assert engine.rest()
    while engine.rest():
        pass
    assert memory.spare == 4 * MB
    number, row = 0, engine.card.spec.row_bytes
    while engine.held_bytes() < 30 * MB:
        number += 1
        engine.start(number, MB // row)
        assert engine.held_bytes() + memory.spare <= 32 * MB
    while engine.rest():
        pass
    assert engine.held_bytes() + memory.spare <= 32 * MB
    engine.close()
