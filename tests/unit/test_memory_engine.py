"""The memory engine is trusted by other tests: it has to be strict, and to fail when told to."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agentcache.adapters.memory.engine import MemoryEngine
from agentcache.adapters.memory.hash_model import hash_spec
from agentcache.domain.errors import IntegrityError
from agentcache.domain.plan import Sampled, SequenceFailed
from agentcache.domain.request import Sampling
from agentcache.domain.spec import CacheSpec
from agentcache.testing.driving import Driver, copied, same_bits

PROMPT = list(range(3, 20))
MORE = [500, 501]
SPECS = {
    "full": hash_spec(),
    "one layer": hash_spec(1),
    "window": hash_spec(2, window=4),
    "state": hash_spec(1, state=True),
    "window and state": hash_spec(3, window=5, state=True),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_it_says_what_is_expected(spec: CacheSpec) -> None:
    engine = MemoryEngine.of(spec=spec)
    driver = Driver(engine)
    said = [driver.begin(1, PROMPT, chunk=4), *driver.decode(1, steps=5)[0]]
    assert said == engine.expected_tokens(PROMPT, 6)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_restored_sequence_says_what_is_expected(spec: CacheSpec) -> None:
    engine = MemoryEngine.of(spec=spec)
    driver = Driver(engine)
    driver.begin(1, PROMPT)
    driver.restore(2, copied(engine.export(1, 0, len(PROMPT))))
    said = [driver.prefill(2, MORE, len(PROMPT)), *driver.decode(2, steps=5)[0]]
    assert said == engine.expected_tokens([*PROMPT, *MORE], 6)


@given(spec=st.sampled_from(list(SPECS.values())), data=st.data())
def test_a_wrong_bit_in_any_array_changes_the_answer(spec: CacheSpec, data: st.DataObject) -> None:
    engine = MemoryEngine.of(spec=spec, vocabulary=2**31)
    driver = Driver(engine)
    driver.begin(1, PROMPT)
    rows = copied(engine.export(1, 0, len(PROMPT)))
    # The next token pushes a window's oldest row out before anything is said.
    seen = [array[:, :, 1:] for array in rows.window.values()]
    array = data.draw(st.sampled_from([*rows.full.values(), *seen, *rows.state.values()]))
    place = np.unravel_index(data.draw(st.integers(0, array.size - 1)), array.shape)
    array.view(np.uint32)[place] ^= np.uint32(1 << data.draw(st.integers(0, 31)))
    driver.restore(2, rows)
    said = driver.prefill(2, MORE[:1], len(PROMPT))
    assert [said] != engine.expected_tokens([*PROMPT, *MORE[:1]], 1)


@given(moved=st.permutations(range(4)))
def test_rows_in_another_order_change_the_answer(moved: list[int]) -> None:
    assume(moved != sorted(moved))
    engine = MemoryEngine.of(vocabulary=2**31)
    driver = Driver(engine)
    driver.begin(1, PROMPT)
    rows = copied(engine.export(1, 0, len(PROMPT)))
    for array in rows.full.values():
        array[:, :, :4] = array[:, :, moved]
    driver.restore(2, rows)
    said = driver.prefill(2, MORE, len(PROMPT))
    assert [said] != engine.expected_tokens([*PROMPT, *MORE], 1)


def test_rows_survive_half_precision() -> None:
    engine = MemoryEngine.of()
    Driver(engine).begin(1, PROMPT)
    for array in engine.export(1, 0, len(PROMPT)).full.values():
        assert np.array_equal(array.astype(np.float16).astype(np.float32), array)


def test_sampling_changes_the_answer_and_a_seed_repeats_it() -> None:
    engine = MemoryEngine.of()
    warm = [Sampling(seed=1), Sampling(seed=2), Sampling(top_k=3, seed=1), Sampling(temperature=0)]
    said = {tuple(engine.expected_tokens(PROMPT, 4, one)) for one in warm}
    assert len(said) == len(warm)
    driver = Driver(engine)
    seeded = [driver.begin(1, PROMPT, sampling=warm[0]), *driver.decode(1, steps=3)[0]]
    assert seeded == engine.expected_tokens(PROMPT, 4, warm[0])


def test_it_ends_as_often_as_it_is_told_to() -> None:
    never, always, seldom = (
        MemoryEngine.of(ends=frozenset({2, 7}), end_rate=rate).expected_tokens(PROMPT, 200)
        for rate in (0.0, 1.0, 0.1)
    )
    assert not {2, 7} & set(never)
    assert set(always) == {2, 7}
    assert 0 < sum(token in {2, 7} for token in seldom) < 60


def test_it_fails_where_it_is_told_to_and_leaves_the_others_alone() -> None:
    engine = MemoryEngine.of(
        fails=lambda sequence, step: "told to" if (sequence, step) == (1, 2) else None
    )
    driver = Driver(engine)
    driver.begin(1, PROMPT)
    driver.begin(2, PROMPT)
    kept = copied(engine.export(1, 0, len(PROMPT)))
    result = driver.step(decode=[1, 2])
    assert result.failed == (SequenceFailed(1, "told to"),)
    assert result.sampled == (Sampled(2, engine.expected_tokens(PROMPT, 2)[1]),)
    assert result.forwarded == 1
    assert same_bits(engine.export(1, 0, len(PROMPT)), kept)
    assert driver.step(decode=[1]).failed == (SequenceFailed(1, "told to"),)
    engine.trim(1, 0)
    assert driver.prefill(1, PROMPT) == engine.expected_tokens(PROMPT, 1)[0]


def test_memory_runs_out_at_its_capacity_and_not_before() -> None:
    row = hash_spec().row_bytes
    engine = MemoryEngine.of(capacity_bytes=100 * row)
    engine.start(1, 60)
    with pytest.raises(MemoryError):
        engine.start(2, 41)
    engine.start(2, 40)
    with pytest.raises(MemoryError):
        engine.grow(2, 41)
    assert engine.held_bytes() == 100 * row
    engine.drop(1)
    engine.grow(2, 100)
    assert engine.held_bytes() == 100 * row


def test_a_refused_sequence_does_not_exist() -> None:
    engine = MemoryEngine.of(capacity_bytes=0)
    with pytest.raises(MemoryError):
        engine.start(1, 8)
    with pytest.raises(IntegrityError):
        engine.export(1, 0, 0)
