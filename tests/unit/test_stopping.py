"""Stop sequences over pieces of text, against the plain definition on the whole text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcache.domain.errors import InvalidRequest
from agentcache.domain.stopping import StopMatcher

# Few characters, so that stop sequences begin, overlap and almost happen all the time.
letters = st.text("ab\n\N{SLIGHTLY SMILING FACE}", max_size=12)
stops = st.lists(st.text("ab\n\N{SLIGHTLY SMILING FACE}", min_size=1, max_size=4), max_size=4)


def defined(text: str, stops: list[str]) -> tuple[str, str | None]:
    """What the client gets of `text`: all before the stop sequence that is complete first."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(st.lists(letters, max_size=8), stops)
def test_the_text_and_the_hit_are_those_of_the_definition_however_it_is_cut(
    pieces: list[str], stops: list[str]
) -> None:
    matcher = StopMatcher(tuple(stops))
    said = "".join(matcher.push(piece)[0] for piece in pieces) + matcher.finish()
    assert (said, matcher.hit) == defined("".join(pieces), stops)


@given(st.lists(letters, max_size=8), stops)
def test_what_was_given_out_is_never_part_of_a_stop_sequence_that_may_follow(
    pieces: list[str], stops: list[str]
) -> None:
    matcher, given_out, pushed = StopMatcher(tuple(stops)), "", ""
    for piece in pieces:
        given_out += matcher.push(piece)[0]
        pushed += piece
        for stop in stops:
            completed = [pushed + stop[size:] for size in range(len(stop))]
            assert all(defined(text, stops)[0].startswith(given_out) for text in completed)


@given(st.lists(letters, max_size=8), stops)
def test_no_more_is_held_back_than_may_become_a_stop_sequence(
    pieces: list[str], stops: list[str]
) -> None:
    matcher, given_out = StopMatcher(tuple(stops)), ""
    for number, piece in enumerate(pieces):
        given_out += matcher.push(piece)[0]
        if matcher.hit is None:
            held = "".join(pieces[: number + 1])[len(given_out) :]
            assert not held or any(stop.startswith(held) for stop in stops)


def test_a_stop_sequence_is_found_across_pieces() -> None:
    matcher = StopMatcher(("</done>",))
    assert [matcher.push(piece) for piece in ("yes</", "do", "ne>", "more")] == [
        ("yes", None),
        ("", None),
        ("", "</done>"),
        ("", "</done>"),
    ]
    assert matcher.finish() == ""


def test_text_that_almost_was_a_stop_sequence_is_given_out_as_soon_as_that_is_certain() -> None:
    matcher = StopMatcher(("aab",))
    assert [matcher.push(piece)[0] for piece in ("aa", "a", "c")] == ["", "a", "aac"]


def test_text_still_held_back_at_the_end_is_text() -> None:
    matcher = StopMatcher(("STOP",))
    assert matcher.push("go ST") == ("go ", None)
    assert (matcher.finish(), matcher.finish()) == ("ST", "")


def test_without_stop_sequences_nothing_is_held_back() -> None:
    assert StopMatcher(()).push("anything") == ("anything", None)


def test_an_empty_stop_sequence_is_refused() -> None:
    with pytest.raises(InvalidRequest) as refused:
        StopMatcher(("x", ""))
    assert refused.value.param == "stop"
