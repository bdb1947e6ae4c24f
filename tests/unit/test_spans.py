"""Spans, the spellings they are cut at, and tools in canonical form."""

from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcache.domain.conversation import Json
from agentcache.domain.errors import InvalidRequest
from agentcache.domain.spans import (
    RenderedSpan,
    Span,
    SpanKind,
    chain,
    chains,
    concatenated,
    matching_spans,
)
from agentcache.domain.spellings import ControlToken, Spellings, unmarked, unused_mark
from agentcache.domain.tokens import tokens
from agentcache.domain.tools import canonical_tools, tools_digest, tools_json

WORDS = ("<|a|>", "<|ab|>", "|>x<|", "<think>", "<<", "[A]")
SPELLINGS = Spellings.of(
    ControlToken(text, number, special=text != "<think>") for number, text in enumerate(WORDS)
)
MARK = "\ue000"

pieces = st.sampled_from([*WORDS, "<", "<|", "|>", "a", "<|a", "think>", "\ue001", "\0", " ", "é"])
adversarial = st.lists(pieces, max_size=8).map("".join)


def control(text: str) -> RenderedSpan:
    return RenderedSpan(SpanKind.CONTROL, "", text)


def content(text: str, role: str = "user") -> RenderedSpan:
    return RenderedSpan(SpanKind.CONTENT, role, text)


def known(span: RenderedSpan, *ids: int) -> Span:
    return Span(span.kind, span.role, span.text, tokens(ids))


class TestMatching:
    def test_spans_match_up_to_the_first_that_says_something_else(self) -> None:
        said = [known(control("<|a|>"), 1), known(content("x"), 2), known(content("y"), 3)]
        assert matching_spans(said, [control("<|a|>"), content("x"), content("z")]) == 2

    def test_content_that_spells_a_control_token_does_not_match_it(self) -> None:
        assert matching_spans([known(control("<|a|>"), 1)], [content("<|a|>")]) == 0

    def test_all_of_the_shorter_side_may_match(self) -> None:
        said = [known(content("x"), 1), known(content("y"), 2)]
        assert matching_spans(said, [content("x")]) == 1
        assert matching_spans(said[:1], [content("x"), content("y")]) == 1

    def test_the_role_is_a_label_and_not_compared(self) -> None:
        assert matching_spans([known(content("x", "tool"), 1)], [content("x", "user")]) == 1

    def test_ids_are_concatenated_in_order(self) -> None:
        assert list(concatenated([known(content("x"), 1, 2), known(content("y"), 3)])) == [1, 2, 3]


class TestChains:
    def test_a_chain_goes_on_from_the_one_before(self) -> None:
        first, second = content("x"), control("<|a|>")
        assert chains([first, second]) == (chain(b"", first), chain(chain(b"", first), second))

    def test_kind_and_text_and_everything_before_count(self) -> None:
        other = [[content("<|a|>")], [control("<|a|>")], [content("y"), content("<|a|>")]]
        assert len({chains(spans)[-1] for spans in other}) == 3


class TestSpellings:
    @given(adversarial, st.booleans())
    def test_hidden_text_comes_back_as_it_was(self, text: str, speaks: bool) -> None:
        assert unmarked(SPELLINGS.hidden(text, MARK, speaks=speaks), MARK) == text

    @given(adversarial, adversarial, adversarial)
    def test_hidden_text_completes_no_spelling_with_what_stands_beside_it(
        self, before: str, text: str, after: str
    ) -> None:
        written = list(SPELLINGS.split(before + MARK + after))
        around = before + SPELLINGS.hidden(f"q{text}q", MARK) + after
        found = [text for kind, text in SPELLINGS.split(around) if kind is SpanKind.CONTROL]
        assert found == [text for kind, text in written if kind is SpanKind.CONTROL]

    @given(adversarial)
    def test_hidden_text_is_content_between_the_halves_of_any_spelling(self, text: str) -> None:
        for word in WORDS:
            for cut in range(1, len(word)):
                around = word[:cut] + SPELLINGS.hidden(text, MARK) + word[cut:]
                kinds = {kind for kind, _ in SPELLINGS.split(around)}
                assert not text or kinds == {SpanKind.CONTENT} or _inside(word, cut, text)

    @pytest.mark.parametrize("word", WORDS)
    def test_a_part_of_a_spelling_completes_it_only_where_templates_compare(
        self, word: str
    ) -> None:
        for start in range(len(word)):
            for stop in range(start + 1, len(word)):
                around = word[:start] + SPELLINGS.hidden(word[start:stop], MARK) + word[stop:]
                assert (SpanKind.CONTROL, word) not in list(SPELLINGS.split(around))
        assert SPELLINGS.hidden("think", MARK, compared=True) == "think"

    def test_the_assistant_may_speak_control_tokens_that_are_not_special(self) -> None:
        said = SPELLINGS.hidden("<think>hm<|a|>", MARK, speaks=True)
        assert list(SPELLINGS.split(said, MARK)) == [
            (SpanKind.CONTROL, "<think>"),
            (SpanKind.CONTENT, "hm<|a|>"),
        ]

    def test_the_longest_spelling_wins(self) -> None:
        spellings = Spellings.of(ControlToken(text, 0) for text in ("<a>", "<a><b>", "<a><b>c"))
        assert [text for _, text in spellings.split("<a><b><a>")] == ["<a><b>", "<a>"]

    def test_white_space_that_a_token_swallows_is_left_out(self) -> None:
        tokens = ControlToken("<l>", 0, lstrip=True), ControlToken("<r>", 1, rstrip=True)
        split = Spellings.of(tokens).split("a \n<l> b <r>\n\n c<r> <l>")
        assert [text for _, text in split] == ["a", "<l>", " b ", "<r>", "c", "<r>", "<l>"]

    def test_without_control_tokens_all_is_content(self) -> None:
        assert list(Spellings.of(()).split("<|a|>")) == [(SpanKind.CONTENT, "<|a|>")]
        assert Spellings.of(()).hidden("<|a|>", MARK) == "<|a|>"

    def test_a_mark_is_in_no_text_and_in_no_json_escape(self) -> None:
        assert unused_mark(["x\ue000", r'{"x": "\ue001\uE002"}']) == "\ue003"

    def test_a_mark_written_as_a_json_escape_is_taken_out_too(self) -> None:
        for mark in ("\ue00a", "\U000f0000"):
            escaped = mark.encode("utf-16-be").hex(" ", 2).split()
            lower = "".join(rf"\u{unit}" for unit in escaped)
            assert unmarked(f"<{lower}|a|{lower.upper().replace('U', 'u')}>", mark) == "<|a|>"


def _inside(word: str, cut: int, text: str) -> bool:
    """Whether the halves around `text` are, by themselves, spellings of other control tokens."""
    return any(other in word[:cut] or other in word[cut:] for other in WORDS if other != word)


class TestTools:
    TOOL: ClassVar[dict[str, Json]] = {
        "type": "function",
        "function": {
            "name": "search",
            "parameters": {"type": "object", "properties": {"q": {"type": "string"}, "a": {}}},
        },
    }

    def test_key_order_does_not_matter(self) -> None:
        assert tools_digest([self.TOOL]) == tools_digest([_reversed(self.TOOL)])
        assert tools_json([self.TOOL]) == tools_json([_reversed(self.TOOL)])

    def test_keys_are_in_the_order_that_models_have_seen(self) -> None:
        (tool,) = canonical_tools([_reversed(self.TOOL)])
        assert tools_json([tool]) == (
            '[{"type":"function","function":{"name":"search","parameters":'
            '{"type":"object","properties":{"a":{},"q":{"type":"string"}}}}}]'
        )

    def test_the_order_of_tools_and_of_lists_matters(self) -> None:
        other = {"type": "other", "enum": ["b", "a"]}
        assert tools_digest([self.TOOL, other]) != tools_digest([other, self.TOOL])
        assert canonical_tools([other])[0]["enum"] == ["b", "a"]

    def test_no_tools_have_no_digest(self) -> None:
        assert (tools_digest([]), tools_json([])) == (b"", "")

    def test_schemas_nested_beyond_reason_are_refused(self) -> None:
        deep: Json = "x"
        for _ in range(10_000):
            deep = {"a": deep}
        with pytest.raises(InvalidRequest) as refused:
            tools_digest([{"parameters": deep}])
        assert refused.value.param == "tools"


def _reversed(value: dict[str, Json]) -> dict[str, Json]:
    return {
        key: _reversed(one) if isinstance(one, dict) else one
        for key, one in reversed(value.items())
    }
