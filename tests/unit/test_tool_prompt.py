"""Tools in words, for templates that know of none: what is told can be read back."""

import json

import pytest

from agentcache.domain.conversation import Conversation, Message, ToolCall
from agentcache.domain.tool_prompt import (
    CALLS,
    calls_in_words,
    parse_calls,
    tools_in_words,
    written,
)

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
ASKED = Message("user", "Look!")


def test_tools_are_told_in_the_system_prompt() -> None:
    told = tools_in_words(Conversation((Message("system", "Be kind."), ASKED), (TOOL,)))
    assert [message.role for message in told.messages] == ["system", "user"]
    assert told.messages[0].content.startswith("Be kind.\n\n")
    assert '"name":"look"' in told.messages[0].content
    assert told.tools == ()


def test_without_a_system_prompt_one_is_made() -> None:
    told = tools_in_words(Conversation((ASKED,), (TOOL,)))
    assert [message.role for message in told.messages] == ["system", "user"]


def test_without_tools_nothing_is_told() -> None:
    conversation = Conversation((Message("system", "<tool_response>"), ASKED))
    assert calls_in_words(tools_in_words(conversation)) == conversation


def test_calls_and_results_are_said_by_those_whose_turn_it_is() -> None:
    calls = (ToolCall("1", "look", '{"at": "a"}'), ToolCall("2", "look", '{"at": "b"}'))
    told = calls_in_words(
        Conversation(
            (
                ASKED,
                Message("assistant", "Wait.", tool_calls=calls),
                Message("tool", "A", tool_call_id="1"),
                Message("tool", "B", tool_call_id="2"),
            )
        )
    )
    assert [message.role for message in told.messages] == ["user", "assistant", "user"]
    assert told.messages[1].content.startswith("Wait.\n<tool_call>")
    assert told.messages[2].content == (
        "<tool_response>A</tool_response>\n<tool_response>B</tool_response>"
    )


def test_what_is_written_can_be_read() -> None:
    call = ToolCall("1", 'lo"ok', '{"at":  [1, "é"]}')
    text = written(call).removeprefix(CALLS[0]).removesuffix(CALLS[1])
    [(name, arguments)] = parse_calls(text, ())
    assert name == call.name
    assert json.loads(arguments) == json.loads(call.arguments)


@pytest.mark.parametrize(
    "text", ["", "no", "{}", "[1]", '{"name": 1}', '{"name": "f", "arguments": [1]}', '"f"']
)
def test_what_is_no_call_is_not_read_as_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_calls(text, ())


def test_arguments_may_be_called_parameters_and_may_be_left_out() -> None:
    assert parse_calls('{"name": "f", "parameters": {"a": 1}}', ()) == [("f", '{"a":1}')]
    assert parse_calls('[{"name": "f"}]', ()) == [("f", "{}")]
