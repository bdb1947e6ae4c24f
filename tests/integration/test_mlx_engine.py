"""The MLX engine against itself: restored and live, ragged and alone, in parts and whole.

BLAS runs on one thread here (conftest.py), so that equal means equal to the bit.
"""

import gc
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcache.adapters.codecs.native import NativeCodec
from agentcache.domain.request import Sampling
from agentcache.ports.rows import Rows
from agentcache.testing.driving import Driver, copied, same_bits
from tests.listening import Logits, listening
from tests.tiny_models import tiny_llama

import mlx.core as mx  # isort: skip  (after the BLAS)

from agentcache.adapters.mlx.engine import MLXEngine  # isort: skip

OTHER_CHUNKS, OTHER_BATCH = 3e-5, 5e-5
HISTORY = [13 * n % 250 + 3 for n in range(45)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(
        tmp_path_factory.mktemp("llama"), seed=3, layers=3, heads=6, kv_heads=2, hidden=96
    )


@pytest.fixture(params=[True, False], ids=["numpy buffers", "mlx caches"])
def driver(request: pytest.FixtureRequest, folder: Path) -> Iterator[Driver]:
    engine = MLXEngine.load(folder, b"tiny", "tiny", cpu_path=request.param)
    assert engine.buffered is request.param
    yield Driver(engine)
    engine.close()


@pytest.fixture(scope="module", params=[True, False], ids=["numpy buffers", "mlx caches"])
def shared(request: pytest.FixtureRequest, folder: Path) -> Iterator[Driver]:
    """One engine for all examples of a property; each example drops what it started."""
    engine = MLXEngine.load(folder, b"tiny", "tiny", cpu_path=request.param)
    yield Driver(engine)
    engine.close()


@pytest.fixture
def heard() -> Iterator[list[Logits]]:
    with listening() as found:
        yield found


class Cut(NamedTuple):
    """Where a restored sequence continues after HISTORY[:row], and with what."""

    row: int
    suffix: list[int]


CUTS = {
    "at the end": Cut(len(HISTORY), [5, 6, 7, 8, 9]),
    "in the middle": Cut(17, HISTORY[17:]),
    "after the first row": Cut(1, HISTORY[1:]),
    "nothing new but the last token": Cut(len(HISTORY) - 1, HISTORY[-1:]),
    "the history is longer than the prompt": Cut(24, HISTORY[24:25]),
    "the history diverges": Cut(20, [250 - one for one in HISTORY[20:31]]),
}


def as_it_is(_driver: Driver, rows: Rows) -> Rows:
    return copied(rows)


def through_the_codec(driver: Driver, rows: Rows) -> Rows:
    codec, spec = NativeCodec(), driver.engine.card.spec
    payload = codec.encode(spec, rows)
    out = copied(rows)
    for array in out.full.values():
        array.fill(np.nan)
    codec.decode(spec, payload, out)
    return out


@pytest.mark.parametrize("carry", [as_it_is, through_the_codec])
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_a_restored_sequence_is_the_live_one_to_the_bit(
    driver: Driver, heard: list[Logits], cut: Cut, carry: Callable[[Driver, Rows], Rows]
) -> None:
    driver.begin(1, HISTORY, chunk=16)
    driver.decode(1, steps=3)
    driver.restore(2, carry(driver, driver.engine.export(1, 0, cut.row)))
    driver.engine.trim(1, cut.row)
    length = cut.row + len(cut.suffix) + 4
    runs = []
    for sequence in (1, 2):
        heard.clear()
        driver.prefill(sequence, cut.suffix, cut.row, chunk=4)
        driver.decode(sequence, steps=4)
        runs.append((np.concatenate(heard), copied(driver.engine.export(sequence, 0, length))))
    assert np.array_equal(runs[0][0], runs[1][0])
    assert same_bits(runs[0][1], runs[1][1])


def test_a_restored_sequence_is_the_live_one_to_the_bit_in_a_batch(
    driver: Driver, heard: list[Logits]
) -> None:
    driver.begin(1, HISTORY)
    driver.restore(2, copied(driver.engine.export(1, 0, 30)))
    driver.engine.trim(1, 30)
    driver.begin(3, HISTORY[:7])
    runs = []
    for sequence in (1, 2):
        driver.prefill(sequence, HISTORY[30:], 30)
        heard.clear()
        driver.decode(sequence, 3, steps=4)
        runs.append(np.concatenate(heard)[::2])
        driver.engine.drop(3)
        driver.begin(3, HISTORY[:7])
    assert np.array_equal(runs[0], runs[1])


def test_one_wrong_row_changes_the_logits(driver: Driver, heard: list[Logits]) -> None:
    driver.begin(1, HISTORY)
    rows = copied(driver.engine.export(1, 0, 44))
    rows.full["g0.v"][1, 0, 9] += 1
    driver.restore(2, rows)
    driver.prefill(2, HISTORY[44:], 44)
    assert np.abs(heard[0] - heard[1]).max() > 1e-3


@given(cuts=st.sets(st.integers(1, len(HISTORY) - 1), max_size=6))
def test_other_chunks_agree_within_the_tolerance(shared: Driver, cuts: set[int]) -> None:
    with listening() as heard:
        shared.begin(1, HISTORY)
        shared.engine.start(2, 64)
        edges = [0, *sorted(cuts), len(HISTORY)]
        for start, stop in pairwise(edges):
            shared.prefill(2, HISTORY[start:stop], start)
    whole, parts = (shared.engine.export(one, 0, len(HISTORY)) for one in (1, 2))
    assert np.abs(heard[0] - heard[-1]).max() <= OTHER_CHUNKS
    assert _distance(whole, parts) <= OTHER_CHUNKS
    shared.engine.drop(1)
    shared.engine.drop(2)


@given(
    prompts=st.lists(st.integers(1, 40), min_size=2, max_size=5),
    present=st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=1, max_size=10),
)
def test_ragged_decode_is_single_decode_whoever_joins_and_leaves(
    shared: Driver, prompts: list[int], present: list[set[int]]
) -> None:
    """`present` are the sequences of each step; they stay away and come back at will."""
    with listening() as heard:
        for n, length in enumerate(prompts):
            shared.begin(n, HISTORY[n : n + length])
        steps = [sorted(one for one in step if one < len(prompts)) for step in present]
        steps = [step for step in steps if step]
        heard.clear()
        for step in steps:
            shared.decode(*step)
        together = [
            dict(zip(step, found, strict=True)) for step, found in zip(steps, heard, strict=True)
        ]
        for n, length in enumerate(prompts):
            mine = [found[n] for found in together if n in found]
            shared.engine.drop(n)
            shared.begin(n, HISTORY[n : n + length])
            heard.clear()
            shared.decode(n, steps=len(mine))
            for alone, found in zip(heard, mine, strict=True):
                assert np.abs(alone[0] - found).max() <= OTHER_BATCH
                assert alone.argmax() == found.argmax()
            shared.engine.drop(n)


def test_the_two_ways_of_keeping_rows_agree(folder: Path, heard: list[Logits]) -> None:
    runs = []
    for cpu_path in (True, False):
        driver = Driver(MLXEngine.load(folder, b"tiny", "tiny", cpu_path=cpu_path))
        heard.clear()
        driver.begin(1, HISTORY, chunk=20)
        driver.decode(1, steps=5)
        runs.append((np.concatenate(heard), copied(driver.engine.export(1, 0, 50))))
        driver.engine.close()
    (numpy_logits, numpy_rows), (mlx_logits, mlx_rows) = runs
    assert np.abs(numpy_logits - mlx_logits).max() <= OTHER_BATCH
    assert _distance(numpy_rows, mlx_rows) <= OTHER_BATCH


def test_held_bytes_are_those_of_the_real_buffers(folder: Path) -> None:
    engine = MLXEngine.load(folder, b"tiny", "tiny")
    engine.start(1, 1000)
    engine.start(2, 500)
    engine.grow(2, 700)
    buffers = [
        rows.base
        for sequence in (1, 2)
        for rows in engine.export(sequence, 0, 0).full.values()
        if rows.base is not None
    ]
    assert sum(buffer.nbytes for buffer in buffers) == engine.held_bytes()
    engine.close()


def test_held_bytes_are_what_mlx_has_in_use(folder: Path) -> None:
    engine = MLXEngine.load(folder, b"tiny", "tiny", cpu_path=False)
    before = mx.get_active_memory()
    driver = Driver(engine)
    driver.begin(1, HISTORY, capacity=2000)
    driver.restore(2, copied(engine.export(1, 0, 30)), capacity=1000)
    engine.grow(2, 3000)
    driver.decode(1, steps=3)
    used = mx.get_active_memory() - before
    assert engine.held_bytes() <= used <= 1.02 * engine.held_bytes()
    engine.drop(1)
    engine.drop(2)
    assert mx.get_active_memory() - before < 100_000
    engine.close()


def test_restored_rows_that_wait_count_as_held(folder: Path) -> None:
    engine = MLXEngine.load(folder, b"tiny", "tiny", cpu_path=False)
    engine.start(1, 64)
    empty = engine.held_bytes()
    engine.start(2, 64, 40)
    assert engine.held_bytes() == 2 * empty + 40 * engine.card.spec.row_bytes
    engine.adopt(2, 40)
    assert engine.held_bytes() == 2 * empty
    engine.close()


def test_restoring_and_exporting_in_numpy_buffers_copies_nothing(folder: Path) -> None:
    engine = MLXEngine.load(folder, b"tiny", "tiny")
    blank = engine.start(1, 64, 40)
    engine.adopt(1, 40)
    for role, rows in engine.export(1, 0, 40).full.items():
        assert np.shares_memory(rows, blank.full[role])
    engine.close()


def test_closing_gives_the_models_memory_back(folder: Path) -> None:
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    engine = MLXEngine.load(folder, b"tiny", "tiny", cpu_path=False)
    Driver(engine).begin(1, HISTORY)
    assert mx.get_active_memory() > before
    engine.close()
    assert mx.get_active_memory() <= before
    assert mx.get_cache_memory() == 0


def test_a_sampled_answer_needs_no_seed_and_differs(driver: Driver) -> None:
    free = Sampling(temperature=2.0)
    said = set()
    for n in range(4):
        first = driver.begin(n, HISTORY, sampling=free)
        said.add((first, *driver.decode(n, steps=6)[0]))
    assert len(said) == 4


def _distance(one: Rows, other: Rows) -> float:
    """The largest difference of float32 rows."""
    return max(
        float(np.abs(rows.view(np.float32) - other.full[role].view(np.float32)).max())
        for role, rows in one.full.items()
    )
