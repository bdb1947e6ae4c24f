"""Frames of streams, for clients that take more characters than others for the end of a line."""

import msgspec
import pytest

from agentcache.adapters.http.anthropic_messages import _event
from agentcache.adapters.http.sse import NUMBER, TEXT, Template, data

ODD = "one\u2028two\u2029three\x85four\x0bfive\x0csix\x1c\x1d\x1eend"


class Said(msgspec.Struct):
    text: str


class Numbered(msgspec.Struct):
    number: int
    text: str
    more: bool = True


@pytest.mark.parametrize("frame", [data(Said(ODD)), _event("said", Said(ODD))])
def test_no_character_of_an_answer_ends_a_line_of_its_stream(frame: bytes) -> None:
    text = frame.decode()
    assert text.splitlines() == [*text.strip("\n").split("\n"), ""]
    line = text.splitlines()[-2]
    assert msgspec.json.decode(line.removeprefix("data: "), type=Said).text == ODD


def _numbered(number: int, text: str) -> bytes:
    return _event("said", Numbered(number, text))


@pytest.mark.parametrize(
    "text",
    ["", "so", '"\\\n', "é \N{GRINNING FACE}", ODD, pytest.param(TEXT, id="the mark itself")],
)
def test_a_template_makes_what_would_be_made_of_the_whole_event(text: str) -> None:
    template = Template.of(_numbered, NUMBER, TEXT)
    assert template.filled(7, text) == _numbered(7, text)
    assert template.filled(8, text) == _numbered(8, text)
