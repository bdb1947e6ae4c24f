"""Structured answers: whatever a model picks within the grammar can be read, and is valid."""

import json
from random import Random

import pytest
from attrs import evolve

from agentcache.adapters.grammars.llguidance import LLGrammars
from agentcache.adapters.memory.tokenizer import END, MemoryTokenizer
from agentcache.domain.answer import AnswerFormat, Call, Piece, Reading, Text, Thought, Tools
from agentcache.domain.conversation import Json
from agentcache.domain.dictated import dictated
from agentcache.domain.errors import InvalidRequest
from agentcache.domain.structure import (
    ANY_OBJECT,
    MOST_DICTATED,
    CalledTools,
    JsonAnswer,
    Structure,
    grammar,
)
from agentcache.domain.tool_prompt import parse_calls

TOKENIZER = MemoryTokenizer()
LEXICON = TOKENIZER.lexicon()
GRAMMARS = LLGrammars(lambda: LEXICON, frozenset({END}))
TOOLS: Tools = (
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {
                "type": "object",
                "properties": {"at": {"$ref": "#/$defs/place"}},
                "required": ["at"],
                "additionalProperties": False,
                "$defs": {"place": {"enum": ["here", "there"]}},
            },
        },
    },
    {"type": "function", "function": {"name": 'q"uote'}},
)
FORMS = {
    "tags of control tokens": AnswerFormat(
        ("<think>", "</think>"), ("<tool_call>", "</tool_call>"), parse_calls
    ),
    "tags of text": AnswerFormat(("[T]", "[/T]"), ("[CALL]", "[/CALL]"), parse_calls),
    "no end": AnswerFormat(None, ("[CALL]", ""), parse_calls),
}
READINGS = {name: Reading(form, TOOLS, "turn") for name, form in FORMS.items()} | {
    f"{name}, in a thought": Reading(form, TOOLS, "turn", opened=True)
    for name, form in FORMS.items()
    if form.thinks
}


def answered(structure: Structure, reading: Reading, random: Random) -> list[Piece]:
    """What comes of picking any of the allowed tokens, the shortest way out in the end."""
    guide = GRAMMARS.guide(grammar(structure, reading, LEXICON.spelled))
    text, detokenizer = "", TOKENIZER.detokenizer()
    for step in range(2000):
        mask = guide.allowed()
        free = [token for token in range(len(LEXICON.pieces)) if mask[token // 8] >> token % 8 & 1]
        token = (
            END
            if END in free and step > 3
            else random.choice(_towards_the_end(free, text, reading.opened))
        )
        if token == END:
            reader = reading.reader()
            return [*reader.push(text), *reader.finish()]
        text += detokenizer.add(token)
        guide.accept(token)
    pytest.fail(f"no end: {text!r}")


def _towards_the_end(free: list[int], text: str, opened: bool) -> list[int]:
    """After a while, what closes thoughts, strings and objects; in this order."""
    if len(text) < 40:
        return free
    size = next(size for size in (3, 2, 1, 0) if text.endswith("[/T]"[:size]))
    ends = "[/T]"[size].encode() if opened and "[/T]" not in text else b'"'
    for closing in ({b"</think>", b"</tool_call>"}, {ends}, {b"}"}):
        if found := [token for token in free if LEXICON.pieces[token] in closing]:
            return found
    return free


@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS.keys())
@pytest.mark.parametrize("seed", range(8))
def test_a_forced_call_can_be_read_and_fits_the_schema_of_its_tool(
    reading: Reading, seed: int
) -> None:
    pieces = answered(CalledTools(), reading, Random(seed))
    calls = [piece.call for piece in pieces if isinstance(piece, Call)]
    assert calls
    assert not [piece for piece in pieces if isinstance(piece, Text) and piece.text.strip()]
    for call in calls:
        arguments = json.loads(call.arguments)
        assert call.name in ("look", 'q"uote')
        assert call.name != "look" or arguments["at"] in ("here", "there")


@pytest.mark.parametrize("seed", range(8))
def test_a_named_tool_is_called_once_if_only_one_call_is_wanted(seed: int) -> None:
    reading = READINGS["tags of control tokens"]
    pieces = answered(CalledTools(("look",), several=False), reading, Random(seed))
    calls = [piece.call.name for piece in pieces if isinstance(piece, Call)]
    assert calls == ["look"]


@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS.keys())
@pytest.mark.parametrize("seed", range(8))
def test_a_json_answer_fits_its_schema(reading: Reading, seed: int) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 99}, "s": {"type": "string"}},
        "required": ["n", "s"],
        "additionalProperties": False,
    }
    pieces = answered(JsonAnswer(schema), reading, Random(seed))
    assert all(isinstance(piece, Text | Thought) for piece in pieces)
    found = json.loads("".join(one.text for one in pieces if isinstance(one, Text)))
    assert set(found) == {"n", "s"}


def test_white_space_between_the_parts_of_json_is_not_free() -> None:
    guide = GRAMMARS.guide(grammar(JsonAnswer(ANY_OBJECT), Reading(), LEXICON.spelled))
    guide.accept(ord("{"))
    mask = guide.allowed()
    assert not [char for char in b" \n\t" if mask[char // 8] >> char % 8 & 1]


def choices(structure: Structure, said: bytes) -> set[bytes]:
    """What may follow `said`, which is said byte by byte."""
    reading = READINGS["tags of control tokens"]
    guide = GRAMMARS.guide(grammar(structure, reading, LEXICON.spelled))
    for byte in said:
        guide.allowed()
        guide.accept(byte)
    mask = guide.allowed()
    return {piece for n, piece in enumerate(LEXICON.pieces) if mask[n // 8] >> n % 8 & 1}


def test_what_a_schema_dictates_is_said_in_the_tokens_of_the_tokenizer_unless_it_is_long() -> None:
    few = choices(JsonAnswer({"const": "the the"}), b'"')
    many = choices(JsonAnswer({"const": "the " * 2000}), b'"')
    assert len(few) == 1 < len(many)
    assert few <= many


@pytest.mark.parametrize("seed", range(8))
def test_in_whatever_tokens_a_dictated_text_is_said_it_is_that_text(seed: int) -> None:
    schema = {"type": "string", "pattern": "^(the ){9}$", "minLength": 36}
    assert dictated(schema) > MOST_DICTATED
    pieces = answered(JsonAnswer(schema), READINGS["no end"], Random(seed))
    text = "".join(one.text for one in pieces if isinstance(one, Text))
    assert json.loads(text) == "the " * 9


def with_parameters(schema: Json) -> Reading:
    tool = {"name": "look", "parameters": schema}
    return evolve(READINGS["tags of text"], tools=({"type": "function", "function": tool},))


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"at": {"pattern": "^(the ){9}$", "minLength": 36}}, "required": ["at"]},
        {"additionalProperties": False},
        {"type": ["null", "object"], "additionalProperties": False},
        {"$ref": "#/$defs/any", "$defs": {"any": {"maxProperties": 0}}},
        {"anyOf": [{"type": "null"}, {"additionalProperties": False}]},
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_arguments_are_an_object_whatever_their_schema_leaves_open(schema: Json, seed: int) -> None:
    pieces = answered(CalledTools(several=False), with_parameters(schema), Random(seed))
    [said] = [piece.call for piece in pieces if isinstance(piece, Call)]
    assert isinstance(json.loads(said.arguments), dict)


@pytest.mark.parametrize("schema", [{"type": "string"}, {"type": ["null"]}, [1], 7, {"type": 1}])
def test_parameters_that_are_no_object_cannot_be_called_for(schema: Json) -> None:
    with pytest.raises(InvalidRequest, match='parameters of "look"'):
        grammar(CalledTools(), with_parameters(schema), LEXICON.spelled)


@pytest.mark.parametrize(
    ("wanted", "tools"),
    [(CalledTools(("run",)), TOOLS), (CalledTools(), ()), (CalledTools(("look",)), TOOLS[1:])],
)
def test_a_tool_that_there_is_not_cannot_be_called_for(wanted: CalledTools, tools: Tools) -> None:
    with pytest.raises(InvalidRequest, match="could be called"):
        grammar(wanted, Reading(FORMS["no end"], tools), LEXICON.spelled)


@pytest.mark.parametrize("seed", range(8))
def test_json_or_calls_is_one_or_the_other(seed: int) -> None:
    reading = READINGS["tags of control tokens"]
    schema = {"type": "integer", "maximum": 9, "minimum": 0}
    pieces = answered(JsonAnswer(schema, calls=True), reading, Random(seed))
    kinds = {type(piece) for piece in pieces}
    assert kinds in ({Text}, {Call})
