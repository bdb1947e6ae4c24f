"""Reading answers: thoughts, calls and text, however the answer is cut into pieces."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcache.domain.answer import (
    PLAIN,
    AnswerFormat,
    Call,
    Called,
    Piece,
    Reading,
    Text,
    Thought,
    Tools,
)
from agentcache.domain.conversation import ToolCall


def parse(text: str, _tools: Tools) -> list[Called]:
    found = json.loads(text)
    calls = found if isinstance(found, list) else [found]
    try:
        return [(call["name"], json.dumps(call["arguments"])) for call in calls]
    except (TypeError, KeyError) as error:
        raise ValueError(str(error)) from None


FORM = AnswerFormat(("<think>", "</think>"), ("<call>", "</call>"), parse)
TOOLS: Tools = ({"type": "function", "function": {"name": "f"}},)
READING = Reading(FORM, TOOLS, "turn")
CALL = '{"name": "f", "arguments": {"a": 1}}'


def read(text: str, reading: Reading = READING) -> list[Piece]:
    """All pieces of `text`, those of one kind that follow each other as one."""
    reader = reading.reader()
    return joined([*reader.push(text), *reader.finish()])


def joined(pieces: list[Piece]) -> list[Piece]:
    found: list[Piece] = []
    for piece in pieces:
        last = found[-1] if found else None
        if isinstance(piece, Text) and isinstance(last, Text):
            found[-1] = Text(last.text + piece.text)
        elif isinstance(piece, Thought) and isinstance(last, Thought):
            found[-1] = Thought(last.text + piece.text)
        else:
            found.append(piece)
    return found


def call(index: int, arguments: str = '{"a": 1}') -> Call:
    return Call(index, ToolCall(READING.call_id(index), "f", arguments))


def test_plain_text_is_given_out_as_it_comes() -> None:
    reader = READING.reader()
    assert reader.push("Hello") == [Text("Hello")]
    assert reader.push(" you") == [Text(" you")]
    assert reader.finish() == []


def test_a_thought_is_told_from_what_is_said_after_it() -> None:
    assert read("<think>\nhm</think>\n\nHi") == [Thought("hm"), Text("Hi")]


def test_an_answer_may_begin_within_a_thought() -> None:
    opened = Reading(FORM, opened=True)
    assert read("hm</think>Hi", opened) == [Thought("hm"), Text("Hi")]


@pytest.mark.parametrize(
    ("prompt", "opens"),
    [("a<think>\n", True), ("a<think></think>", False), ("</think><think>", True), ("a", False)],
)
def test_a_generation_prompt_may_begin_a_thought(prompt: str, opens: bool) -> None:
    assert FORM.opens(prompt) is opens
    assert not PLAIN.opens(prompt)


def test_where_one_call_is_wanted_the_rest_is_left_out() -> None:
    single = Reading(FORM, TOOLS, "turn", single=True)
    text = f"Wait.<call>[{CALL}, {CALL}]</call>Done.<call>{CALL}</call>"
    assert read(text, single) == [Text("Wait."), call(0)]


def test_a_thought_that_is_cut_off_is_a_thought() -> None:
    assert read("<think>hm") == [Thought("hm")]


def test_calls_have_ids_that_differ_by_turn_and_place() -> None:
    assert read(f"<call>{CALL}</call>\n<call>{CALL}</call>") == [call(0), call(1)]
    other = Reading(FORM, TOOLS, "another turn")
    ids = [READING.call_id(0), READING.call_id(1), other.call_id(0)]
    assert len(set(ids)) == 3


def test_one_pair_of_markers_may_hold_several_calls() -> None:
    assert read(f"<call>[{CALL}, {CALL}]</call>") == [call(0), call(1)]


def test_text_before_and_after_a_call_is_text() -> None:
    assert read(f"Wait. <call>{CALL}</call> Done.") == [Text("Wait. "), call(0), Text("Done.")]


@pytest.mark.parametrize("text", ["<call>nonsense</call>", "<call>{}</call>", "<call>[1]</call>"])
def test_what_is_no_call_is_text_markers_and_all(text: str) -> None:
    assert read(f"a{text}b") == [Text(f"a{text}b")]


def test_a_call_that_the_model_itself_does_not_end_is_text() -> None:
    assert read('<call>{"name": "f"') == [Text('<call>{"name": "f"')]


@pytest.mark.parametrize("cut", ["<call>", '<call>{"name": "f"', f"<call>[{CALL}"])
def test_of_a_call_that_is_cut_off_nothing_is_told(cut: str) -> None:
    reader = READING.reader()
    assert joined([*reader.push(f"Wait.{cut}"), *reader.finish(cut=True)]) == [Text("Wait.")]
    message = READING.message(f"Wait.{cut}", cut=True)
    assert (message.content, message.said) == ("Wait.", f"Wait.{cut}")


def test_what_is_whole_before_the_cut_is_told() -> None:
    reader = READING.reader()
    told = [*reader.push(f"<call>{CALL}</call>So <c"), *reader.finish(cut=True)]
    assert joined(told) == [call(0), Text("So <c")]
    reader = READING.reader()
    assert [*reader.push(f"<call>{CALL}"), *reader.finish(cut=True)] == [call(0)]


def test_ids_of_calls_begin_as_they_are_asked_to() -> None:
    theirs = Reading(FORM, TOOLS, "turn", calls_begin="toolu_")
    assert theirs.call_id(0).startswith("toolu_")
    assert theirs.call_id(0).removeprefix("toolu_") == READING.call_id(0).removeprefix("call_")


def test_calls_may_go_on_to_the_end_of_the_answer() -> None:
    form = AnswerFormat(calls=("[CALLS]", ""), parse=parse)
    assert read(f"[CALLS]{CALL}", Reading(form, TOOLS, "turn")) == [call(0)]


def test_without_tools_nothing_is_a_call() -> None:
    text = f"<call>{CALL}</call>"
    assert read(text, Reading(FORM, (), "turn")) == [Text(text)]


def test_a_message_remembers_how_it_was_said() -> None:
    text = f"<think>hm</think>\n\nWait.<call>{CALL}</call>"
    message = READING.message(text)
    assert (message.content, message.thought, message.said) == ("Wait.", "hm", text)
    assert [one.name for one in message.tool_calls] == ["f"]
    assert READING.message("Hello").said is None


_PIECES = st.sampled_from(
    ["<think>", "</think>", "<call>", "</call>", CALL, "<", "<th", "</", "x", " ", "\n", "{"]
)


@given(st.lists(_PIECES, max_size=12).map("".join), st.data())
def test_what_an_answer_means_does_not_depend_on_how_it_is_cut(
    text: str, data: st.DataObject
) -> None:
    reader, pieces, at = READING.reader(), list[Piece](), 0
    while at < len(text):
        size = data.draw(st.integers(1, 9))
        pieces += reader.push(text[at : at + size])
        at += size
    assert joined([*pieces, *reader.finish()]) == read(text)


@given(st.text(alphabet="<>/thinkcal x\n{", max_size=60))
def test_an_answer_of_a_model_without_markers_is_text_as_it_is(text: str) -> None:
    assert "".join(one.text for one in read(text, Reading(PLAIN)) if isinstance(one, Text)) == text


@pytest.mark.parametrize("arguments", ['{"a": NaN}', '{"a": 1e999}', "[1]", "1"])
def test_what_is_no_json_object_is_no_call(arguments: str) -> None:
    text = f'<call>{{"name": "f", "arguments": {arguments}}}</call>'
    assert read(text) == [Text(text)]


def test_a_call_that_is_nested_too_deeply_to_be_read_is_text() -> None:
    text = f"<call>{'[' * 100_000}</call>"
    assert read(text) == [Text(text)]


def test_half_a_character_in_a_call_is_replaced() -> None:
    [said] = read('<call>{"name": "f", "arguments": {"a": "x\\ud83d"}}</call>')
    assert said == call(0, '{"a": "x\N{REPLACEMENT CHARACTER}"}')


FORCED = Reading(FORM, TOOLS, "turn", forced=True)


@pytest.mark.parametrize("cut", ["<", "<cal", "<call>", '<call>{"name": "f"', f"<call>{CALL}</c"])
def test_of_a_forced_call_that_is_cut_off_nothing_is_text(cut: str) -> None:
    assert read(cut, FORCED) in ([], [call(0)])
    assert read(f"<call>{CALL}</call>\n{cut}", FORCED) in ([call(0)], [call(0), call(1)])
    message = FORCED.message(cut)
    assert (message.content, message.said) == ("", cut)


def test_a_thought_before_a_forced_call_is_told_though_it_is_cut_off() -> None:
    opened = Reading(FORM, TOOLS, "turn", opened=True, forced=True)
    assert read("hm", opened) == [Thought("hm")]
    assert read("hm</think><ca", opened) == [Thought("hm")]


def test_a_whole_forced_call_that_cannot_be_read_is_text() -> None:
    text = '<call>{"name": "f", "arguments": {"a": 1e999}}</call>'
    assert read(text, FORCED) == [Text(text)]
