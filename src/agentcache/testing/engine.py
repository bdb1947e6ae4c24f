"""What every engine promises, whatever it computes with."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from attrs import evolve

from agentcache.domain.canary import divergence
from agentcache.domain.errors import IntegrityError
from agentcache.domain.plan import Again, PrefillChunk
from agentcache.domain.request import Sampling
from agentcache.domain.tokens import tokens
from agentcache.domain.trace import TOP, TRACED, Top
from agentcache.ports.engine import Engine
from agentcache.ports.rows import Rows
from agentcache.testing.driving import GREEDY, Driver, copied, same_bits

PROMPT = [7 * n % 250 + 3 for n in range(23)]
OTHER = [11 * n % 250 + 3 for n in range(9)]
SEEDED = Sampling(temperature=1.5, seed=7)


class EngineContract:
    """Subclass it, and override the fixture `engine`: a new one for every test.

    Its vocabulary has at least 254 ids, its context 128 tokens.
    """

    @pytest.fixture
    def engine(self) -> Engine:
        """The engine under test; it is closed afterwards."""
        raise NotImplementedError("override the fixture `engine`")

    @pytest.fixture
    def driver(self, engine: Engine) -> Iterator[Driver]:
        """Drives the engine as the loop does."""
        yield Driver(engine)
        engine.close()

    def test_every_token_passed_to_the_model_is_counted(self, driver: Driver) -> None:
        driver.engine.start(1, 128)
        driver.begin(2, OTHER)
        chunk = PrefillChunk(1, 0, tokens(PROMPT), GREEDY)
        assert driver.step(chunk, decode=[2]).forwarded == len(PROMPT) + 1
        assert driver.step(decode=[1, 2]).forwarded == 2

    def test_a_chunk_that_is_not_the_last_samples_nothing(self, driver: Driver) -> None:
        driver.engine.start(1, 128)
        result = driver.step(PrefillChunk(1, 0, tokens(PROMPT)))
        assert (result.sampled, result.failed) == ((), ())

    def test_chunks_give_the_tokens_that_one_prefill_gives(self, driver: Driver) -> None:
        whole = [driver.begin(1, PROMPT), *driver.decode(1, steps=5)[0]]
        parts = [driver.begin(2, PROMPT, chunk=5), *driver.decode(2, steps=5)[0]]
        assert parts == whole

    def test_what_is_decoded_together_is_what_is_decoded_alone(self, driver: Driver) -> None:
        driver.begin(1, PROMPT)
        alone = driver.decode(1, steps=6)[0]
        driver.begin(2, OTHER)
        other_alone = driver.decode(2, steps=6)[0]
        driver.begin(3, PROMPT)
        driver.begin(4, OTHER)
        assert driver.decode(3, 4, steps=6) == [alone, other_alone]

    def test_what_is_said_depends_on_the_first_token(self, driver: Driver) -> None:
        said = [driver.begin(1, PROMPT), *driver.decode(1, steps=5)[0]]
        other = [driver.begin(2, [PROMPT[0] + 1, *PROMPT[1:]]), *driver.decode(2, steps=5)[0]]
        assert said != other

    def test_a_restored_sequence_says_what_the_live_one_says(self, driver: Driver) -> None:
        driver.begin(1, PROMPT)
        kept = copied(driver.engine.export(1, 0, len(PROMPT)))
        live = [driver.prefill(1, OTHER, len(PROMPT)), *driver.decode(1, steps=5)[0]]
        driver.restore(2, kept)
        restored = [driver.prefill(2, OTHER, len(PROMPT)), *driver.decode(2, steps=5)[0]]
        assert restored == live

    def test_restored_rows_are_exported_to_the_bit(self, driver: Driver) -> None:
        driver.begin(1, PROMPT)
        kept = copied(driver.engine.export(1, 0, len(PROMPT)))
        driver.restore(2, kept)
        assert same_bits(driver.engine.export(2, 0, len(PROMPT)), kept)

    def test_an_interior_export_has_the_rows_that_were_asked_for(self, driver: Driver) -> None:
        driver.begin(1, PROMPT)
        whole = copied(driver.engine.export(1, 0, len(PROMPT)))
        part = driver.engine.export(1, 4, 9)
        assert (part.start, part.stop) == (4, 9)
        assert same_bits(part, whole.part(4, 9))

    def test_a_sequence_that_was_emptied_starts_over(self, driver: Driver) -> None:
        first = driver.begin(1, PROMPT)
        driver.decode(1, steps=3)
        driver.engine.trim(1, 0)
        assert driver.prefill(1, PROMPT) == first

    def test_a_trimmed_sequence_continues_as_if_the_rest_had_never_been(
        self, driver: Driver
    ) -> None:
        if not driver.engine.card.spec.interior_restorable:
            driver.begin(1, PROMPT)
            with pytest.raises(IntegrityError, match="trimmed"):
                driver.engine.trim(1, 12)
            return
        driver.begin(1, PROMPT[:12])
        expected = driver.prefill(1, OTHER, 12)
        driver.begin(2, PROMPT[:12])
        driver.prefill(2, PROMPT[12:], 12)
        driver.engine.trim(2, 12)
        assert driver.prefill(2, OTHER, 12) == expected

    def test_what_was_sampled_is_forgotten_when_trimmed(self, driver: Driver) -> None:
        driver.begin(1, PROMPT)
        driver.engine.trim(1, len(PROMPT))
        with pytest.raises(IntegrityError, match="nothing was sampled"):
            driver.submit(decode=[1])

    def test_growing_keeps_every_row_and_the_sampled_token(self, driver: Driver) -> None:
        driver.begin(1, PROMPT)
        expected = driver.decode(1, steps=4)
        driver.begin(2, PROMPT, capacity=len(PROMPT))
        kept = copied(driver.engine.export(2, 0, len(PROMPT)))
        driver.engine.grow(2, 64)
        assert same_bits(driver.engine.export(2, 0, len(PROMPT)), kept)
        assert driver.decode(2, steps=4) == expected

    def test_growing_to_less_changes_nothing(self, driver: Driver) -> None:
        driver.begin(1, PROMPT, capacity=64)
        held = driver.engine.held_bytes()
        driver.engine.grow(1, 10)
        assert driver.engine.held_bytes() == held

    def test_held_bytes_are_those_of_the_capacities(self, driver: Driver) -> None:
        engine, spec = driver.engine, driver.engine.card.spec
        row, fixed = spec.row_bytes + spec.window_row_bytes, spec.state_bytes
        assert engine.held_bytes() == 0
        engine.start(1, 100)
        engine.start(2, 50)
        assert engine.held_bytes() == 150 * row + 2 * fixed
        engine.grow(2, 80)
        assert engine.held_bytes() == 180 * row + 2 * fixed
        engine.drop(1)
        assert engine.held_bytes() == 80 * row + fixed

    def test_dropping_twice_is_no_error_and_the_number_is_free_again(self, driver: Driver) -> None:
        first = driver.begin(1, PROMPT)
        driver.engine.drop(1)
        driver.engine.drop(1)
        assert driver.engine.held_bytes() == 0
        assert driver.begin(1, PROMPT) == first

    def test_resting_ends_and_changes_nothing(self, driver: Driver) -> None:
        expected = [driver.begin(1, PROMPT), *driver.decode(1, steps=4)[0]]
        while driver.engine.rest():
            pass
        said = driver.begin(2, PROMPT)
        held = driver.engine.held_bytes()
        while driver.engine.rest():
            pass
        assert driver.engine.held_bytes() == held
        assert [said, *driver.decode(2, steps=4)[0]] == expected

    def test_a_seed_draws_the_same_tokens_alone_and_in_company(self, driver: Driver) -> None:
        alone = [driver.begin(1, PROMPT, sampling=SEEDED), *driver.decode(1, steps=8)[0]]
        first = driver.begin(2, PROMPT, sampling=SEEDED)
        driver.begin(3, OTHER, sampling=Sampling(temperature=0.7, top_p=0.9, seed=1))
        driver.begin(4, OTHER)
        assert [first, *driver.decode(3, 2, 4, steps=8)[1]] == alone

    def test_another_seed_draws_other_tokens(self, driver: Driver) -> None:
        one = [driver.begin(1, PROMPT, sampling=SEEDED), *driver.decode(1, steps=8)[0]]
        changed = Sampling(temperature=1.5, seed=8)
        assert [driver.begin(2, PROMPT, sampling=changed), *driver.decode(2, steps=8)[0]] != one

    def test_no_more_steps_are_taken_than_may_be_in_flight(self, driver: Driver) -> None:
        driver.begin(1, PROMPT)
        for _ in range(driver.engine.card.in_flight):
            driver.submit(decode=[1])
        with pytest.raises(IntegrityError, match="before a step is collected"):
            driver.submit(decode=[1])

    def test_a_step_may_start_before_the_tokens_of_the_last_one_are_known(
        self, driver: Driver
    ) -> None:
        driver.begin(1, PROMPT)
        driver.begin(2, OTHER)
        expected = driver.decode(1, 2, steps=6)
        driver.begin(3, PROMPT)
        driver.begin(4, OTHER)
        said: dict[int, list[int]] = {3: [], 4: []}
        ahead = driver.engine.card.in_flight
        for step in range(6 + ahead - 1):
            if step < 6:
                driver.submit(decode=[3, 4])
            if step >= ahead - 1:
                for one in driver.engine.collect().sampled:
                    said[one.sequence].append(one.token)
        assert [said[3], said[4]] == expected

    def test_tokens_come_in_the_order_of_the_steps_plan(self, driver: Driver) -> None:
        for number in (1, 2, 3):
            driver.begin(number, PROMPT)
        driver.submit(decode=[3, 1, 2])
        assert [one.sequence for one in driver.engine.collect().sampled] == [3, 1, 2]

    def test_collecting_without_a_step_is_refused(self, driver: Driver) -> None:
        with pytest.raises(IntegrityError, match="no step"):
            driver.engine.collect()

    def test_a_sequence_dropped_meanwhile_is_left_out_of_the_result(self, driver: Driver) -> None:
        driver.begin(1, PROMPT)
        driver.begin(2, OTHER)
        driver.submit(decode=[1, 2])
        driver.engine.drop(1)
        assert [one.sequence for one in driver.engine.collect().sampled] == [2]

    def test_a_number_taken_again_gets_nothing_from_its_former_holder(self, driver: Driver) -> None:
        driver.begin(1, PROMPT)
        driver.submit(decode=[1])
        driver.engine.drop(1)
        driver.engine.start(1, 64)
        assert driver.engine.collect().sampled == ()

    def test_a_sequence_trimmed_meanwhile_is_left_out_and_can_go_on(self, driver: Driver) -> None:
        first = driver.begin(1, PROMPT)
        driver.submit(decode=[1])
        driver.engine.trim(1, 0)
        assert driver.engine.collect().sampled == ()
        assert driver.prefill(1, PROMPT) == first

    def test_restored_rows_can_be_fewer_than_were_asked_for(self, driver: Driver) -> None:
        driver.engine.start(1, 64, 20)
        driver.engine.adopt(1, 0)
        first = driver.prefill(1, PROMPT)
        assert driver.begin(2, PROMPT) == first

    def test_tokens_that_run_again_leave_their_rows_and_the_next_token_as_they_were(
        self, driver: Driver
    ) -> None:
        if not driver.engine.card.spec.interior_restorable:
            driver.begin(1, PROMPT)
            with pytest.raises(IntegrityError):
                driver.submit(_again(1, PROMPT, 3, OTHER))
            return
        driver.begin(1, PROMPT)
        kept = copied(driver.engine.export(1, 0, len(PROMPT)))
        live = driver.prefill(1, OTHER, len(PROMPT))
        for sequence, count in ((2, 1), (3, len(PROMPT))):
            driver.restore(sequence, kept)
            result = driver.step(_again(sequence, PROMPT, count, OTHER))
            assert [one.token for one in result.sampled] == [live]
            assert result.forwarded == count + len(OTHER)
            assert same_bits(driver.engine.export(sequence, 0, len(PROMPT)), kept)

    def test_they_are_as_likely_again_as_they_were(self, driver: Driver) -> None:
        ids, tops, kept = _traced(driver)
        if not driver.engine.card.spec.interior_restorable:
            return
        assert [len(top) for top in tops] == [TOP] * TRACED
        driver.restore(2, kept)
        asked = tuple(tuple(token for token, _ in top) for top in tops)
        (told,) = driver.step(_again(2, ids, TRACED, OTHER, asked)).retold
        assert told.sequence == 2
        assert divergence(tops, told.found) < 1e-6

    def test_on_the_rows_of_others_they_are_not(self, driver: Driver) -> None:
        ids, tops, kept = _traced(driver)
        if not driver.engine.card.spec.interior_restorable:
            return
        for array in kept.full.values():
            array[:] = np.roll(array, 1, axis=2)
        driver.restore(2, kept)
        asked = tuple(tuple(token for token, _ in top) for top in tops)
        (told,) = driver.step(_again(2, ids, TRACED, OTHER, asked)).retold
        assert divergence(tops, told.found) > 1e-5

    def test_they_can_run_again_before_a_chunk_that_samples_nothing(self, driver: Driver) -> None:
        ids, tops, kept = _traced(driver)
        if not driver.engine.card.spec.interior_restorable:
            return
        driver.restore(2, kept)
        asked = tuple(tuple(token for token, _ in top) for top in tops)
        chunk = evolve(_again(2, ids, TRACED, OTHER, asked), sampling=None)
        result = driver.step(chunk)
        assert (result.sampled, result.failed) == ((), ())
        assert divergence(tops, result.retold[0].found) < 1e-6

    def test_tokens_that_there_are_not_are_as_likely_as_no_number(self, driver: Driver) -> None:
        ids, tops, kept = _traced(driver)
        if not driver.engine.card.spec.interior_restorable:
            return
        driver.restore(2, kept)
        asked = tuple((2**31,) for _ in tops)
        (told,) = driver.step(_again(2, ids, TRACED, OTHER, asked)).retold
        assert divergence(tuple(((2**31, -1.0),) for _ in tops), told.found) > 1

    def test_of_a_prompt_only_the_last_position_is_remembered(self, driver: Driver) -> None:
        driver.engine.start(1, 64)
        driver.step(PrefillChunk(1, 0, tokens(PROMPT), GREEDY, traced=True))
        assert len(driver.engine.likeliest(1, len(PROMPT))) <= 1
        assert driver.engine.likeliest(1, len(PROMPT)) == ()  # and only until it was told

    def test_nothing_is_remembered_that_is_not_traced_or_was_trimmed(self, driver: Driver) -> None:
        driver.begin(1, PROMPT)
        assert driver.engine.likeliest(1, len(PROMPT)) == ()
        driver.engine.start(2, 64)
        driver.step(PrefillChunk(2, 0, tokens(PROMPT), GREEDY, traced=True))
        driver.engine.trim(2, 0)
        driver.step(PrefillChunk(2, 0, tokens(PROMPT)))
        assert driver.engine.likeliest(2, len(PROMPT)) == ()

    @pytest.mark.parametrize(
        "wrong",
        [
            lambda d: d.engine.start(1, 64),
            lambda d: d.engine.grow(9, 64),
            lambda d: d.engine.export(1, 0, len(PROMPT) + 1),
            lambda d: d.engine.trim(1, len(PROMPT) + 1),
            lambda d: d.submit(decode=[9]),
            lambda d: d.submit(PrefillChunk(1, 3, tokens(OTHER), GREEDY)),
            lambda d: d.submit(PrefillChunk(1, len(PROMPT), tokens([5] * 99), GREEDY)),
            lambda d: d.submit(_again(1, [5, *PROMPT], len(PROMPT) + 1, OTHER)),
        ],
        ids=["started", "unknown", "export", "trim", "decode", "gap", "room", "again"],
    )
    def test_what_cannot_be_is_a_bug_of_the_caller(
        self, driver: Driver, wrong: Callable[[Driver], object]
    ) -> None:
        driver.begin(1, PROMPT, capacity=64)
        kept = copied(driver.engine.export(1, 0, len(PROMPT)))
        with pytest.raises(IntegrityError):
            wrong(driver)
        assert same_bits(driver.engine.export(1, 0, len(PROMPT)), kept)

    def test_blank_rows_are_writable_and_of_the_specs_dtype(self, driver: Driver) -> None:
        blank = driver.engine.start(1, 64, 16)
        assert (blank.start, blank.stop) == (0, 16)
        for array in blank.full.values():
            assert array.flags.writeable
            assert array.dtype == np.float32
            assert array.shape[2] == 16


def _again(
    sequence: int,
    before: Sequence[int],
    count: int,
    ids: Sequence[int],
    asked: tuple[tuple[int, ...], ...] | None = None,
) -> PrefillChunk:
    """A chunk of `ids` after `before`, whose last `count` tokens run again."""
    again = Again(tokens(before[-count:]), ((5,),) * count if asked is None else asked)
    return PrefillChunk(sequence, len(before), tokens(ids), GREEDY, again=again)


def _traced(driver: Driver) -> tuple[list[int], tuple[Top, ...], Rows]:
    """Sequence 1 says something: its tokens, what it says of the last ones, a copy of its rows."""
    driver.engine.start(1, 64)
    chunk = PrefillChunk(1, 0, tokens(PROMPT), GREEDY, traced=True)
    said = [one.token for one in driver.step(chunk).sampled]
    ids = [*PROMPT, *said, *driver.decode(1, steps=5)[0]][:-1]
    tops = driver.engine.likeliest(1, len(ids))
    return ids, tops, copied(driver.engine.export(1, 0, len(ids)))
