"""Guides: what they allow is just what the grammar says, in the tokens of a vocabulary."""

import gc
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from agentcache.adapters.grammars.finite import NumberLimit, NumberTokens
from agentcache.adapters.grammars.llguidance import LLGrammars
from agentcache.adapters.grammars.trial import Trial
from agentcache.adapters.memory.tokenizer import END, MemoryTokenizer
from agentcache.domain.errors import InvalidRequest
from agentcache.domain.guide import Grammar, Guide

LEXICON = MemoryTokenizer().lexicon()
GRAMMARS = LLGrammars(lambda: LEXICON, frozenset({END}))
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}


def of_schema(schema: object) -> Guide:
    return GRAMMARS.guide(Grammar(f"start: %json {json.dumps(schema)}"))


def allowed(guide: Guide) -> set[int]:
    mask = guide.allowed()
    return {token for token in range(len(LEXICON.pieces)) if mask[token // 8] >> token % 8 & 1}


def said(guide: Guide, pick: Callable[[set[int]], int], most: int = 200) -> str:
    """What comes of taking `pick` of the allowed tokens, up to the end of the turn."""
    text = b""
    for _ in range(most):
        token = pick(allowed(guide))
        if token == END:
            return text.decode()
        text += LEXICON.pieces[token]
        guide.accept(token)
    pytest.fail(f"no end after {text!r}")


@settings(max_examples=30)
@given(st.randoms(use_true_random=False))
def test_whatever_is_picked_the_answer_fits_the_schema(random: Random) -> None:
    def pick(tokens: set[int]) -> int:
        digits = {token for token in tokens if LEXICON.pieces[token].isdigit()}
        return random.choice(sorted(tokens - digits or tokens))

    person = json.loads(said(of_schema(PERSON), pick))
    assert set(person) == {"name", "age"}
    assert len(person["name"]) <= 5
    assert isinstance(person["age"], int)


def test_the_turn_ends_only_where_the_sentence_is_complete() -> None:
    guide = GRAMMARS.guide(Grammar('start: "ab" "c"?'))
    assert END not in allowed(guide)
    guide.accept(LEXICON.pieces.index(b"ab"))
    assert allowed(guide) == {END, ord("c")}
    guide.accept(ord("c"))
    assert allowed(guide) == {END}


def test_a_control_token_is_no_text_of_its_spelling() -> None:
    guide = GRAMMARS.guide(Grammar("start: /[<>a-z_]+/"))
    assert not allowed(guide) & LEXICON.control


def test_a_grammar_may_ask_for_a_control_token_by_its_id() -> None:
    token = LEXICON.pieces.index(b"<tool_call>")
    guide = GRAMMARS.guide(Grammar(f'start: <[{token}]> "x"'))
    assert allowed(guide) == {token}


def test_a_token_that_is_not_allowed_is_refused() -> None:
    guide = GRAMMARS.guide(Grammar('start: "a"'))
    with pytest.raises(ValueError, match="token"):
        guide.accept(ord("b"))


def test_a_fresh_guide_begins_anew_and_leaves_the_old_one_where_it_is() -> None:
    guide = GRAMMARS.guide(Grammar('start: "a" "b"'))
    guide.accept(ord("a"))
    fresh = guide.fresh()
    assert ord("b") not in allowed(fresh)
    assert ord("b") in allowed(guide)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "object", "not": {"type": "null"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "format": "no-such-format"}, "no-such-format"),
        ({"type": "nonsense"}, "nonsense"),
        ({"$ref": "https://example.com/schema"}, "https://example.com/schema"),
    ],
)
def test_what_of_a_schema_cannot_be_kept_to_is_named(schema: object, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        of_schema(schema)


def test_a_huge_grammar_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="characters"):
        of_schema({"enum": ["x" * 300_000]})


def test_a_vocabulary_without_bytes_has_no_grammars() -> None:
    with pytest.raises(InvalidRequest, match="no bytes"):
        LLGrammars(lambda: None, frozenset({END})).guide(Grammar('start: "a"'))


def ruinous(count: int) -> object:
    """A text that has to fit `count` patterns at once."""
    return {"type": "string", "allOf": [{"pattern": f"a{{{n}}}"} for n in range(1, count)]}


@pytest.mark.parametrize(
    ("schema", "named"),
    [(ruinous(40), "allOf, pattern"), ({"type": "integer", "multipleOf": 999_983}, "multipleOf")],
    ids=["memory", "time"],
)
def test_a_schema_that_takes_too_much_is_refused_and_the_next_one_is_as_before(
    schema: object, named: str
) -> None:
    trial = Trial(seconds=1)
    with pytest.raises(InvalidRequest, match=rf"too much time or memory \(.*: {named}\)"):
        trial.check(LLMatcher.grammar_from_lark(f"start: %json {json.dumps(schema)}"))
    trial.check(LLMatcher.grammar_from_lark('start: "a"'))


def test_schemas_are_tried_out_before_they_are_compiled() -> None:
    with pytest.raises(InvalidRequest, match="too much time or memory"):
        of_schema(ruinous(40))


def test_schemas_are_tried_out_one_by_one_whoever_asks() -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: allowed(of_schema({"const": n})), [1, 2, 3, 4]))
    assert found == [{ord(str(n))} for n in [1, 2, 3, 4]]


def test_the_process_that_tries_schemas_out_ends_with_whoever_uses_it() -> None:
    trial = Trial()
    trial.check(LLMatcher.grammar_from_lark('start: "a"'))
    process = trial._process
    assert process is not None
    assert process.poll() is None
    del trial
    gc.collect()
    assert process.poll() is not None


def sayable(schema: object, text: str) -> bool:
    """Whether `text`, said byte by byte, is an answer of `schema`."""
    guide = of_schema(schema)
    for byte in text.encode():
        if byte not in allowed(guide):
            return False
        guide.accept(byte)
    return END in allowed(guide)


@pytest.mark.parametrize("number", ["0", "-1.5", "3e-4", "6.022e+23", "-1E99", "9" * 120])
@pytest.mark.parametrize("schema", [{"type": "number"}, {}, {"type": ["number", "null"]}])
def test_numbers_that_a_double_holds_can_be_said(schema: object, number: str) -> None:
    assert sayable(schema, number)


@pytest.mark.parametrize("number", ["1e100", "1e999", "-2.5E+400", "9" * 400, "1." + "0" * 400])
def test_numbers_of_any_size_and_length_cannot(number: str) -> None:
    for schema, text in (
        ({"type": "number"}, number),
        ({"type": "object"}, f'{{"a":{number}}}'),
        ({}, f"[1e9,{number}]"),
        ({"type": "integer"}, number),
    ):
        assert not sayable(schema, text)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string"}, "1e999"),
        ({"type": "string"}, "9" * 400),
        ({"type": "string", "pattern": "^[0-9a-f]*$"}, "11e9999"),
        ({"type": "string", "pattern": "^[0-9e]{6}$"}, "1e9999"),
        ({"type": "string", "pattern": "^a [0-9e]{5}$"}, "a 1e999"),
    ],
)
def test_texts_that_look_like_numbers_can_be_said(schema: object, text: str) -> None:
    assert sayable(schema, json.dumps(text))


def test_a_number_that_a_schema_dictates_is_said_however_long_it_is() -> None:
    assert sayable({"const": 10**200}, str(10**200))


@settings(max_examples=30)
@given(st.randoms(use_true_random=False))
def test_whatever_is_picked_no_number_is_larger_than_a_double_holds(random: Random) -> None:
    def pick(tokens: set[int]) -> int:
        longer = {one for one in tokens if LEXICON.pieces[one] in b"0123456789eE+-."}
        return random.choice(sorted(longer - {END} or tokens))

    assert abs(float(json.loads(said(of_schema({"type": "number"}), pick, 400)))) < 1e308


def test_tokens_of_many_digits_make_no_number_larger() -> None:
    tokens = NumberTokens.of([b"1", b"e", b"99", b"999", b"e1", b"e100", b",", b'"'], frozenset())
    limit = NumberLimit(tokens)
    assert [limit.within(b"\xff"), *(_after(limit, token) for token in (0, 1, 2))] == [
        b"\xff",
        b"\xff",  # with a quotation mark among what is allowed it is a text
        b"\xff",
        b"\xff",
    ]
    limit = NumberLimit(tokens)
    told = [_after(limit, token, b"\x7f") for token in (0, 1, 0)]
    assert told == [b"\x5f", b"\x77", b"\x73"]


def _after(limit: NumberLimit, token: int, mask: bytes = b"\xff") -> bytes:
    limit.accept(token)
    return limit.within(mask)
