"""Every kind of cache on MLX: what is restored from segments is what was live, to the bit.

BLAS runs on one thread here (conftest.py), so that equal means equal to the bit.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcache.adapters.disk.segments import DiskSegmentStore
from agentcache.domain.errors import IntegrityError
from agentcache.ports.rows import Rows
from agentcache.testing.driving import Driver, copied, same_bits
from tests.listening import Logits, listening
from tests.parking import HISTORY, STEPS, SUFFIX, Parking, native_bytes
from tests.shape_process import RESTORED_AT, restored_elsewhere
from tests.tiny_shapes import SHAPES

import mlx.core as mx  # isort: skip  (after the BLAS)
from mlx_lm.models.cache import make_prompt_cache  # isort: skip

from agentcache.adapters.mlx.engine import MLXEngine  # isort: skip

ENDS = (5, 8, 20, 33)  # before a window of 8 is full, when it is, and after
OTHER_BATCH, OTHER_CACHE = 5e-5, 1e-4


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: one.made(tmp_path_factory.mktemp(name)) for name, one in SHAPES.items()}


@pytest.fixture(scope="module", params=SHAPES)
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[True, False], ids=["numpy buffers", "mlx arrays"])
def engine(
    request: pytest.FixtureRequest, folders: dict[str, Path], shape: str
) -> Iterator[MLXEngine]:
    made = MLXEngine.load(folders[shape], b"tiny", shape, cpu_path=request.param)
    yield made
    made.close()


@pytest.fixture
def driver(engine: MLXEngine) -> Iterator[Driver]:
    yield Driver(engine)
    for sequence in range(10):
        engine.drop(sequence)


def test_the_probe_knows_every_cache_of_the_model(engine: MLXEngine, shape: str) -> None:
    expected = SHAPES[shape]
    assert engine.report.kinds == expected.kinds
    assert engine.batching.mode == expected.batching
    assert not engine.card.spec.whole
    assert len(engine.card.notes) == (expected.batching == "single")


def test_the_model_says_what_it_says_with_mlx_lms_own_caches(driver: Driver) -> None:
    """In chunks and one by one, until every window has long been full."""
    model = driver.engine._loaded.forward._model
    with listening() as heard:
        driver.begin(1, HISTORY, chunk=9)
        said = [*driver.decode(1, steps=20)[0]]
    cache = make_prompt_cache(model)
    for start in range(0, len(HISTORY), 9):
        logits = model(mx.array([HISTORY[start : start + 9]]), cache=cache)
    for token, ours in zip([int(heard[0].argmax()), *said], heard, strict=True):
        assert np.abs(np.array(logits[0, -1]) - ours[0]).max() <= OTHER_CACHE
        logits = model(mx.array([[token]]), cache=cache)


@pytest.mark.parametrize("end", [*ENDS, 13])
def test_a_restored_sequence_is_the_live_one_to_the_bit(driver: Driver, end: int) -> None:
    engine = driver.engine
    ends = [one for one in ENDS if one <= end]
    parking = Parking(driver)
    if end not in ENDS:  # between two ends
        if not engine.card.spec.interior_restorable:
            assert engine.card.spec.restore_point(end, ends) == max(ends)
            return
        ends = [one for one in ENDS if one < end] + [ENDS[len(ends)]]
    parking.run(1, ends)
    engine.trim(1, end)
    parking.restore(2, end)
    assert same_bits(engine.export(1, 0, end), engine.export(2, 0, end))
    runs = [_goes_on(driver, sequence, end) for sequence in (1, 2)]
    assert np.array_equal(runs[0][0], runs[1][0])
    assert same_bits(runs[0][1], runs[1][1])


def test_the_end_of_a_turn_is_a_place_to_continue(driver: Driver) -> None:
    parking = Parking(driver)
    parking.run(1, ENDS)
    said = [driver.prefill(1, HISTORY[33:], 33), *driver.decode(1, steps=12)[0]]
    known = [*HISTORY, *said[:-1]]
    parking.keep(1, known)
    parking.restore(2, len(known))
    driver.engine.trim(1, len(known))
    runs = [_goes_on(driver, sequence, len(known)) for sequence in (1, 2)]
    assert np.array_equal(runs[0][0], runs[1][0])
    assert same_bits(runs[0][1], runs[1][1])


def test_a_restored_sequence_is_the_live_one_to_the_bit_in_a_batch(driver: Driver) -> None:
    parking = Parking(driver)
    parking.run(1, ENDS)
    parking.restore(2, 33)
    runs = []
    for sequence in (1, 2):
        driver.begin(3, HISTORY[:7])
        driver.begin(4, HISTORY[:19])
        driver.prefill(sequence, SUFFIX, 33)
        with listening() as heard:
            driver.decode(3, sequence, 4, steps=4)
        runs.append([logits[-2] for logits in heard] if len(heard) == 4 else heard[1::3])
        driver.engine.drop(3)
        driver.engine.drop(4)
    assert np.array_equal(runs[0], runs[1])


def test_a_batch_gives_each_sequence_what_it_gets_alone(driver: Driver) -> None:
    lengths = (3, 30, 8)
    with listening() as heard:
        alone = []
        for n, length in enumerate(lengths):
            driver.begin(n, HISTORY[n : n + length])
            heard.clear()
            said = driver.decode(n, steps=12)[0]
            alone.append((said, np.concatenate(heard)))
            driver.engine.drop(n)
        for n, length in enumerate(lengths):
            driver.begin(n, HISTORY[n : n + length])
        heard.clear()
        together = driver.decode(*range(len(lengths)), steps=12)
    by_sequence = np.concatenate(heard).reshape(12, len(lengths), -1)
    for n, (said, logits) in enumerate(alone):
        assert together[n] == said
        assert np.abs(by_sequence[:, n] - logits).max() <= OTHER_BATCH


def test_what_is_read_from_disk_by_another_process_goes_on_like_what_was_live(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """One process for all architectures; each is restored where a window is full, and before."""
    live: dict[str, Logits] = {}
    for name, folder in folders.items():
        driver = Driver(MLXEngine.load(folder, b"tiny", name))
        for end in RESTORED_AT:
            store = DiskSegmentStore.open(tmp_path / f"{name}.{end}", tmp_path / "aside")
            parking = Parking(driver, store)
            parking.run(1, [one for one in ENDS if one <= end])
            parking.store_all()
            store.close()
            live[f"{name}.{end}"] = _goes_on(driver, 1, end)[0]
            driver.engine.drop(1)
        driver.engine.close()
    restored = restored_elsewhere(folders, tmp_path, ENDS)
    assert restored.keys() == live.keys()
    for run, logits in live.items():
        assert np.array_equal(restored[run], logits), run


@settings(max_examples=8)
@given(
    ends=st.sets(st.integers(1, len(HISTORY)), min_size=1, max_size=5),
    suffix=st.integers(1, len(SUFFIX)),
    steps=st.integers(1, 10),
)
def test_whatever_the_cuts_what_is_restored_goes_on_like_what_was_live(
    engine: MLXEngine, ends: set[int], suffix: int, steps: int
) -> None:
    driver = Driver(engine)
    parking = Parking(driver)
    parking.run(1, sorted(ends))
    parking.restore(2, max(ends))
    runs = []
    for sequence in (1, 2):
        with listening() as heard:
            driver.prefill(sequence, SUFFIX[:suffix], max(ends))
            driver.decode(sequence, steps=steps)
        runs.append(np.concatenate(heard))
        engine.drop(sequence)
    assert np.array_equal(*runs)


def test_a_failed_step_leaves_the_rows_from_before(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward stops before its last layer, when others have changed their caches."""
    engine = driver.engine
    lengths = {1: 20, 2: 7}
    for sequence, length in lengths.items():
        driver.begin(sequence, HISTORY[:length])
    before = {one: copied(engine.export(one, 0, length)) for one, length in lengths.items()}
    _break_in_the_middle(engine, monkeypatch)
    assert len(driver.step(decode=[1, 2]).failed) == 2
    monkeypatch.undo()
    for sequence, length in lengths.items():
        assert same_bits(engine.export(sequence, 0, length), before[sequence])


def test_what_has_windows_or_states_can_only_be_emptied(driver: Driver) -> None:
    driver.begin(1, HISTORY)
    if driver.engine.card.spec.interior_restorable:
        driver.engine.trim(1, 30)
    else:
        with pytest.raises(IntegrityError, match="cannot be trimmed to 30"):
            driver.engine.trim(1, 30)
        driver.engine.trim(1, 0)
    start = 30 if driver.engine.card.spec.interior_restorable else 0
    again = driver.prefill(1, HISTORY[start:], start)
    assert again == driver.begin(2, HISTORY)


def test_a_sequence_that_grows_loses_nothing(driver: Driver) -> None:
    driver.begin(1, HISTORY, capacity=len(HISTORY))
    before = copied(driver.engine.export(1, 0, len(HISTORY)))
    driver.engine.grow(1, 200)
    assert same_bits(driver.engine.export(1, 0, len(HISTORY)), before)
    driver.begin(2, HISTORY, capacity=200)
    assert driver.decode(1, steps=20) == driver.decode(2, steps=20)


def test_what_a_segment_takes_is_what_the_spec_says(driver: Driver) -> None:
    spec, parking = driver.engine.card.spec, Parking(driver)
    parking.run(1, ENDS)
    for segment in parking.segments:
        assert parking.warm[segment.key].nbytes == native_bytes(spec, len(segment))


def test_a_long_sequence_holds_no_more_of_windows_and_states_than_a_short_one(
    driver: Driver,
) -> None:
    engine, spec = driver.engine, driver.engine.card.spec
    engine.start(1, 600)
    driver.prefill(1, [HISTORY[n % 45] for n in range(500)], chunk=64)
    driver.decode(1, steps=50)
    full = 600 * spec.row_bytes
    windows = sum(
        (layer.window + 32) * layer.row_items * 4
        for layer in spec.layers
        if layer.window is not None
    )
    assert engine.held_bytes() <= full + windows + spec.state_bytes


def _goes_on(driver: Driver, sequence: int, start: int) -> tuple[Logits, Rows]:
    """The logits that a sequence gives from there, and its rows then."""
    with listening() as heard:
        driver.prefill(sequence, SUFFIX, start, chunk=4)
        driver.decode(sequence, steps=STEPS)
    stop = start + len(SUFFIX) + STEPS
    return np.concatenate(heard), copied(driver.engine.export(sequence, 0, stop))


def _break_in_the_middle(engine: MLXEngine, patch: pytest.MonkeyPatch) -> None:
    model = engine._loaded.forward._model

    def broken(*_: object, **__: object) -> mx.array:
        raise RuntimeError("broken")

    layers = model.layers  # type: ignore[attr-defined]
    patch.setattr(type(layers[-1]), "__call__", _until(layers[-1], broken))


def _until(last: object, broken: object) -> object:
    plain = type(last).__call__  # type: ignore[operator]

    def call(self: object, *args: object, **more: object) -> object:
        return broken() if self is last else plain(self, *args, **more)  # type: ignore[operator]

    return call
