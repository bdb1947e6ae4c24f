"""Steering, on every engine: bias, penalties, grammars, and how likely tokens were."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from attrs import evolve

from agentcache.adapters.grammars.llguidance import LLGrammars
from agentcache.adapters.memory.engine import MemoryEngine
from agentcache.domain.guide import Grammar, Guide
from agentcache.domain.plan import PrefillChunk, StepResult
from agentcache.domain.request import Sampling
from agentcache.domain.tokens import tokens
from agentcache.ports.engine import Engine
from agentcache.ports.grammar import Lexicon
from agentcache.testing.driving import GREEDY, Driver
from tests.tiny_models import tiny_llama

from agentcache.adapters.mlx.engine import MLXEngine  # isort: skip  (after the BLAS)

PROMPT = [7 * n % 250 + 3 for n in range(23)]
END = 2
LEXICON = Lexicon([bytes([n]) for n in range(256)], frozenset({END}), lambda text: [*text.encode()])
ASCII = Lexicon(LEXICON.pieces[:128], LEXICON.control, LEXICON.encode)
GRAMMARS = LLGrammars(lambda: LEXICON, frozenset({END}))
LETTERS = set(b"abc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), seed=1)


KINDS: dict[str, Callable[[Path], Engine]] = {
    "memory": lambda _: MemoryEngine.of(vocabulary=256),
    "mlx, numpy buffers": lambda folder: MLXEngine.load(folder, b"tiny", "tiny"),
    "mlx, its own caches": lambda folder: MLXEngine.load(folder, b"tiny", "tiny", cpu_path=False),
}


@pytest.fixture(params=list(KINDS))
def driver(request: pytest.FixtureRequest, folder: Path) -> Iterator[Driver]:
    engine = KINDS[request.param](folder)
    yield Driver(engine)
    engine.close()


@pytest.fixture(params=[kind for kind in KINDS if kind != "memory"])
def mlx(request: pytest.FixtureRequest, folder: Path) -> Iterator[Driver]:
    engine = KINDS[request.param](folder)
    yield Driver(engine)
    engine.close()


def begun(
    driver: Driver,
    sequence: int,
    sampling: Sampling = GREEDY,
    guide: Guide | None = None,
    said: Sequence[int] = (),
) -> StepResult:
    """What comes of the prompt and of the tokens that were `said` before."""
    driver.engine.start(sequence, 128)
    ids = tokens([*PROMPT, *said])
    return driver.step(PrefillChunk(sequence, 0, ids, sampling, guide, tokens(list(said))))


def spoken(
    driver: Driver,
    sampling: Sampling = GREEDY,
    guide: Guide | None = None,
    steps: int = 12,
    said: Sequence[int] = (),
) -> list[int]:
    """The tokens that are said after the prompt."""
    first = begun(driver, 1, sampling, guide, said).sampled[0].token
    found = [first, *driver.decode(1, steps=steps)[0]]
    driver.engine.drop(1)
    return found


def test_a_grammar_is_kept_to_and_the_model_chooses_within_it(driver: Driver) -> None:
    guide = GRAMMARS.guide(Grammar("start: /[abc]{30}/"))
    said = spoken(driver, Sampling(seed=3), guide)
    assert set(said) <= LETTERS
    assert len(set(said)) > 1


def test_a_grammar_that_is_over_leaves_only_the_end_of_the_turn(driver: Driver) -> None:
    guide = GRAMMARS.guide(Grammar('start: "ab"'))
    assert spoken(driver, Sampling(seed=3), guide, steps=2) == [*b"ab", END]


def test_two_answers_with_one_guide_do_not_disturb_each_other(driver: Driver) -> None:
    guide = GRAMMARS.guide(Grammar('start: "abcabcabc"'))
    begun(driver, 1, GREEDY, guide)
    driver.decode(1)
    begun(driver, 2, GREEDY, guide)
    assert driver.decode(1, 2, steps=3) == [[*b"cab"], [*b"bca"]]


def test_sequences_without_a_grammar_say_beside_one_what_they_say_alone(driver: Driver) -> None:
    alone = spoken(driver)
    first = begun(driver, 1).sampled[0].token
    begun(driver, 2, GREEDY, GRAMMARS.guide(Grammar("start: /[abc]{30}/")))
    free, kept = driver.decode(1, 2, steps=12)
    assert [first, *free] == alone
    assert set(kept) <= LETTERS


def test_an_answer_that_goes_on_elsewhere_goes_on_in_its_grammar(driver: Driver) -> None:
    guide = GRAMMARS.guide(Grammar('start: "abcabc"'))
    assert spoken(driver, GREEDY, guide, steps=2, said=b"abc") == [*b"abc"]


def test_an_answer_that_cannot_go_on_in_its_grammar_fails_alone(mlx: Driver) -> None:
    begun(mlx, 1)
    result = begun(mlx, 2, GREEDY, GRAMMARS.guide(Grammar('start: "ab"')), said=b"x")
    assert [one.sequence for one in result.failed] == [2]
    assert mlx.decode(1, steps=2)


@pytest.mark.parametrize("steps", [0, 3])
def test_an_answer_at_a_dead_end_is_stuck_where_it_is_and_others_go_on(
    driver: Driver, steps: int
) -> None:
    grammars = LLGrammars(lambda: ASCII, frozenset({END}))
    begun(driver, 1)
    begun(driver, 2, GREEDY, grammars.guide(Grammar(f'start: "{"a" * (steps + 1)}" "é"')))
    alone = driver.decode(1, steps=0)
    for _ in range(steps):
        alone = driver.decode(1, 2)
    rows = driver.engine.held_bytes()
    result = driver.step(decode=[1, 2])
    assert [(one.sequence, one.stuck) for one in result.failed] == [(2, True)]
    assert [one.sequence for one in result.sampled] == [1]
    assert driver.engine.held_bytes() == rows
    assert len(driver.engine.export(2, 0, len(PROMPT) + steps).full) > 0
    assert alone is not None
    driver.engine.trim(2, len(PROMPT))
    assert driver.step(PrefillChunk(2, len(PROMPT), tokens([9]), GREEDY)).sampled


def test_a_banned_token_is_not_said(driver: Driver) -> None:
    free = spoken(driver)
    bias = tuple((token, -100.0) for token in set(free))
    assert not set(spoken(driver, Sampling(temperature=0, logit_bias=bias))) & set(free)


def test_a_bias_makes_a_token_likelier(mlx: Driver) -> None:
    assert spoken(mlx, Sampling(temperature=0, logit_bias=((77, 100.0),))) == [77] * 13


def test_a_frequency_penalty_ends_repetitions(mlx: Driver) -> None:
    bias = ((77, 80.0), (78, 75.0))
    plain = Sampling(temperature=0, logit_bias=bias)
    assert spoken(mlx, plain) == [77] * 13
    assert set(spoken(mlx, evolve(plain, frequency_penalty=2))) == {77, 78}


def test_a_presence_penalty_counts_once(mlx: Driver) -> None:
    bias = ((77, 30.5), (78, 29.0))
    penalised = Sampling(temperature=0, logit_bias=bias, presence_penalty=2)
    said = spoken(mlx, penalised)
    assert said[:2] == [77, 78]
    assert set(said[2:]) == {77}  # both were said: they are as they were to each other


def test_penalties_count_what_was_said_before_the_answer_went_on_elsewhere(mlx: Driver) -> None:
    bias = ((77, 30.0), (78, 29.0))
    penalised = Sampling(temperature=0, logit_bias=bias, frequency_penalty=2)
    whole = spoken(mlx, penalised)
    assert spoken(mlx, penalised, said=whole[:5], steps=7) == whole[5:]


def test_log_probabilities_are_the_models_own(mlx: Driver) -> None:
    sampling = Sampling(seed=1, top_k=3, logprobs=5)
    one = begun(mlx, 1, sampling).sampled[0]
    other = begun(mlx, 2, Sampling(temperature=0, logprobs=250)).sampled[0]
    assert one.logprobs is not None
    assert other.logprobs is not None
    everything = dict(other.logprobs.top)
    assert one.logprobs.top == other.logprobs.top[:5]
    assert one.logprobs.chosen == pytest.approx(everything[one.token])
    assert other.logprobs.chosen == max(everything.values())
    assert np.exp(list(everything.values())).sum() <= 1.0 + 1e-6
    assert list(everything.values()) == sorted(everything.values(), reverse=True)


def test_who_does_not_ask_is_told_no_log_probabilities(driver: Driver) -> None:
    assert begun(driver, 1).sampled[0].logprobs is None
    begun(driver, 2, Sampling(temperature=0, logprobs=0))
    told = {one.sequence: one.logprobs for one in driver.step(decode=[1, 2]).sampled}
    assert told[1] is None
    assert told[2] is not None
