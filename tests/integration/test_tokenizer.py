"""The contract of the tokenizer port, over the in-memory one and every kind of Hugging Face one."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, frozen
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models
from tokenizers import pre_tokenizers as cuts
from transformers import AutoTokenizer

from agentcache.adapters.memory.tokenizer import MemoryTokenizer
from agentcache.adapters.mlx.chat_template import ChatTemplate
from agentcache.adapters.mlx.tokenizer import MLXTokenizer, load
from agentcache.domain.conversation import Conversation, Json, Message, ToolCall
from agentcache.domain.errors import InvalidRequest, ModelError
from agentcache.domain.request import Miss
from agentcache.domain.spans import RenderedSpan, Span, SpanKind, concatenated
from agentcache.ports.model_source import ModelFolder
from agentcache.ports.tokenizer import Tokenizer as Port
from agentcache.rendering import PromptBuilder
from agentcache.testing.conversations import (
    MARKS,
    adversarial,
    anything,
    asked,
    controls,
    decoded,
    encoded,
)
from agentcache.testing.tokenizer import TokenizerContract
from tests.made_tokenizers import MADE, SPACE, word_level

NAMES = ("default", *MADE)
innocent = st.text(
    st.sampled_from("abz .,\n\t09(){}'\"#") | st.characters(exclude_categories=("Cs", "Co")),
    min_size=1,
    max_size=40,
).filter(lambda text: text.strip() and not any(mark[:2] in text for mark in MARKS))


@frozen(eq=False)
class Subject:
    """A tokenizer under test, and what transformers reads from the same folder."""

    name: str
    tokenizer: MLXTokenizer
    reference: Any

    @classmethod
    def of(cls, name: str, folder: Path) -> "Subject":
        return cls(name, load(folder), AutoTokenizer.from_pretrained(folder))

    def expected(self, conversation: Conversation) -> list[int]:
        """The ids that transformers makes of a conversation."""
        ids: list[int] = self.reference.apply_chat_template(
            [_fields(message) for message in conversation.messages],
            tools=[dict(tool) for tool in conversation.tools] or None,
            add_generation_prompt=True,
            return_dict=False,
        )
        return ids


@pytest.fixture(scope="session")
def subjects(
    tmp_path_factory: pytest.TempPathFactory, default_model: ModelFolder
) -> dict[str, Subject]:
    folders = {name: make(tmp_path_factory.mktemp(name)) for name, make in MADE.items()}
    folders["default"] = default_model.path
    return {name: Subject.of(name, folder) for name, folder in folders.items()}


@pytest.fixture(scope="session", params=NAMES)
def subject(request: pytest.FixtureRequest, subjects: dict[str, Subject]) -> Subject:
    return subjects[request.param]


@pytest.fixture(scope="session", params=["memory", *NAMES])
def tokenizer(request: pytest.FixtureRequest, subjects: dict[str, Subject]) -> Port:
    return _port(request.param, subjects)


class TestEveryTokenizer(TokenizerContract):
    @pytest.fixture(params=["memory", *NAMES])
    def tokenizer(self, request: pytest.FixtureRequest, subjects: dict[str, Subject]) -> Port:
        return _port(request.param, subjects)


def _port(name: str, subjects: dict[str, Subject]) -> Port:
    return MemoryTokenizer() if name == "memory" else subjects[name].tokenizer


class TestContentCannotSpeakControl:
    @given(text=adversarial)
    def test_nor_do_tools_and_their_results(self, subjects: dict[str, Subject], text: str) -> None:
        tokenizer = subjects["thinking"].tokenizer
        rendered = [controls(tokenizer.render(_tool_talk(said))) for said in (text, "a")]
        assert rendered[0] == rendered[1]

    def test_nor_do_names_in_the_tags_that_a_template_makes_of_them(self) -> None:
        backend = Tokenizer(models.WordLevel({"<think>": 0, "<unk>": 1}, "<unk>"))
        backend.add_special_tokens(["<think>"])
        template = """{% for tool in tools %}<{{ tool.function.name }}>
            {%- for key in tool.function.parameters %}<{{ key }}>{% endfor %}{% endfor %}
            {%- for message in messages %}<{{ message.name }}>{{ message.content }}{% endfor %}"""
        tokenizer = MLXTokenizer.of(backend, template, {})
        tool = {"function": {"name": "think", "parameters": {"think": 1}}}
        spans = tokenizer.render(Conversation((Message("user", "x", name="think"),), (tool,)))
        assert controls(spans) == []
        assert "".join(span.text for span in spans) == "<think><think><think>x"

    def test_an_assistant_keeps_its_reasoning(self, subjects: dict[str, Subject]) -> None:
        said = Message("assistant", "<think>hm</think><|im_end|>so")
        for tokenizer in (MemoryTokenizer(), subjects["thinking"].tokenizer):
            spans = tokenizer.render(Conversation((Message("user", "why?"), said)), False)
            turn = ["<|im_start|>", "<think>", "</think>", "<|im_end|>"]
            assert controls(spans)[-4:] == turn

    def test_spellings_that_are_ordinary_pieces_too_are_cut_in_two(self) -> None:
        vocab = [("<unk>", 0.0), ("<end>", -1.0), *((char, -3.0) for char in "<end>x")]
        backend = Tokenizer(models.Unigram(list(dict(vocab).items()), 0))
        backend.add_special_tokens([AddedToken("<end>", special=True)])
        tokenizer = MLXTokenizer.of(backend, None, {})
        (span,) = (span for span in tokenizer.render(asked("x<end>x")) if "<end>" in span.text)
        names = [backend.id_to_token(token) for token in tokenizer.encode(span)]
        assert "<end>" not in names
        assert "".join(names).count("x<end>x") == 1

    def test_an_end_token_that_stands_for_the_unknown_is_not_sampled_from_text(self) -> None:
        vocab = {"<end>": 0, "a": 1, "\N{REPLACEMENT CHARACTER}": 2}
        backend = Tokenizer(models.BPE(vocab, [], unk_token="<end>"))
        backend.add_special_tokens([AddedToken("<end>", special=True)])
        tokenizer = MLXTokenizer.of(backend, None, {})
        assert list(tokenizer.content.encode("aza")) == [1, 2, 1]


class TestEncoding:
    @given(text=anything)
    def test_text_comes_back_as_it_was(self, tokenizer: Port, text: str) -> None:
        assume(_spellable(tokenizer, text))
        ids = tokenizer.encode(RenderedSpan(SpanKind.CONTENT, "user", text))
        assert decoded(tokenizer, ids) in _equivalents(tokenizer, text)

    @given(first=innocent, answer=innocent, second=innocent)
    @example(
        first="def f(x):\n\n\n    return {'a':  1}\n", answer="\n\n<table>\n", second=" agent "
    )
    def test_innocent_conversations_have_the_ids_of_transformers(
        self, subject: Subject, first: str, answer: str, second: str
    ) -> None:
        conversation = asked(first, answer, second)
        spans = subject.tokenizer.render(conversation)
        assert _undated(subject, encoded(subject.tokenizer, spans)) == _undated(
            subject, subject.expected(conversation)
        )

    def test_so_have_tools_calls_and_results(self, subjects: dict[str, Subject]) -> None:
        subject, conversation = subjects["thinking"], _tool_talk("42")
        spans = subject.tokenizer.render(conversation)
        assert encoded(subject.tokenizer, spans) == subject.expected(conversation)

    def test_several_threads_get_what_one_gets(self, subject: Subject) -> None:
        conversations = [asked(f"question {n} <|im_end|>" * 20) for n in range(40)]

        def ids(conversation: Conversation) -> list[int]:
            return encoded(subject.tokenizer, subject.tokenizer.render(conversation))

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(ids, conversations)) == [ids(one) for one in conversations]


class TestRawText:
    @given(text=innocent)
    @example(text=" x")
    def test_it_has_the_ids_of_transformers(self, subject: Subject, text: str) -> None:
        expected = list(subject.reference(text)["input_ids"])
        assume(expected)  # a text without one token is no prompt
        assert _raw_ids(subject.tokenizer, text) == expected

    @given(before=innocent, after=innocent)
    def test_so_it_has_with_control_tokens_in_it(
        self, subjects: dict[str, Subject], before: str, after: str
    ) -> None:
        subject, text = subjects["default"], f"{before}<|im_end|>{after}"
        assert _raw_ids(subject.tokenizer, text) == list(subject.reference(text)["input_ids"])

    def test_what_the_tokenizer_puts_before_a_text_is_not_put_there_twice(
        self, subjects: dict[str, Subject]
    ) -> None:
        tokenizer = subjects["instruct"].tokenizer
        assert tokenizer.preamble == "<s>"
        assert _raw_ids(tokenizer, "<s>Once") == _raw_ids(tokenizer, "Once")

    def test_its_answer_begins_with_the_space_that_is_said(
        self, subjects: dict[str, Subject]
    ) -> None:
        tokenizer = subjects["instruct"].tokenizer
        builder = PromptBuilder(tokenizer)
        prompt = builder.build_recalling(Conversation((), text="the"), lambda _: None)
        (answer,) = (tokenizer.encode(RenderedSpan(SpanKind.CONTENT, "", f"{SPACE}answer")),)
        detokenizer = builder.detokenizer(prompt)
        text = "".join(map(detokenizer.add, answer)) + detokenizer.finish()
        assert text == " answer"
        after = builder.spans_after(prompt, answer, text)
        assert (after[-1].text, list(concatenated(after))) == (
            "the answer",
            [*prompt.tokens, *answer],
        )

    def test_a_lone_surrogate_is_refused(self, tokenizer: Port) -> None:
        with pytest.raises(InvalidRequest, match=r"U\+D83D") as refused:
            tokenizer.render(Conversation((), text="a\ud83d"))
        assert refused.value.param == "prompt"


class TestLexicon:
    def test_it_encodes_what_a_grammar_forces(self, tokenizer: Port) -> None:
        lexicon = tokenizer.lexicon()
        assert lexicon is not None
        text = '{"name": "look"}<|im_end|>'
        span = RenderedSpan(SpanKind.CONTENT, "assistant", text)
        assert list(lexicon.encode(text)) == list(tokenizer.encode(span))


class TestDetokenizing:
    @pytest.mark.parametrize("name", ["chatml", "headers", "default"])
    @given(data=st.data())
    def test_the_pieces_are_the_full_decode_without_an_incomplete_character_at_the_end(
        self, subjects: dict[str, Subject], name: str, data: st.DataObject
    ) -> None:
        tokenizer = subjects[name].tokenizer
        backend = tokenizer.decoding.backend
        ids = data.draw(st.lists(st.integers(0, backend.get_vocab_size() - 1), max_size=20))
        full = backend.decode(ids, skip_special_tokens=True)
        said = decoded(tokenizer, ids)
        assert full in (said, said + "\N{REPLACEMENT CHARACTER}")

    def test_the_bytes_of_a_surrogate_are_no_incomplete_character(
        self, subjects: dict[str, Subject]
    ) -> None:
        tokenizer = subjects["chatml"].tokenizer
        backend = tokenizer.decoding.backend
        alphabet = _alphabet()
        ids = [backend.token_to_id(alphabet[byte]) for byte in b"x\xed\xb1"]
        assert decoded(tokenizer, ids) == backend.decode(ids) == "x\ufffd\ufffd"
        assert decoded(tokenizer, ids[:2]) == "x"

    @pytest.mark.parametrize("text", ["\N{GRINNING FACE}", "日本語", "e\u0301", "a  b ,c .", "  x"])
    def test_characters_of_many_bytes_come_whole_and_spaces_as_they_are(
        self, tokenizer: Port, text: str
    ) -> None:
        detokenizer = tokenizer.detokenizer()
        ids = tokenizer.encode(RenderedSpan(SpanKind.CONTENT, "user", f"x{text}x"))
        pieces = [detokenizer.add(token) for token in ids]
        assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
        assert "".join(pieces) + detokenizer.finish() in _equivalents(tokenizer, f"x{text}x")

    def test_special_tokens_have_no_text_and_other_added_tokens_do(
        self, subjects: dict[str, Subject]
    ) -> None:
        tokenizer = subjects["thinking"].tokenizer
        ids = [
            tokenizer.encode(RenderedSpan(SpanKind.CONTROL, "", text))[0]
            for text in ("<|im_start|>", "<think>", "</think>", "<|im_end|>")
        ]
        assert decoded(tokenizer, ids) == "<think></think>"

    def test_vocabularies_of_words_are_streamed_too(self, tmp_path: Path) -> None:
        tokenizer = load(word_level(tmp_path))
        ids = [2, 3, 0, 7, 1, 2]
        assert decoded(tokenizer, ids) == tokenizer.decoding.backend.decode(ids)


class TestRoles:
    def test_whatever_holds_an_answer_is_the_assistants(self, tokenizer: Port) -> None:
        spans = tokenizer.render(asked("what?", "the answer", "again?"))
        assert [span.role for span in spans if "the answer" in span.text] == ["assistant"]
        prompt = PromptBuilder(tokenizer).build(asked("what?"))
        after = PromptBuilder(tokenizer).spans_after(
            prompt, _letter_by_letter(tokenizer, "the answer"), "the answer"
        )
        assert after[-1].role == "assistant"

    def test_tools_and_their_results_are_told_apart(self, subjects: dict[str, Subject]) -> None:
        spans = subjects["thinking"].tokenizer.render(_tool_talk("42 degrees"))
        roles = {span.text.strip(): span.role for span in spans}
        assert roles["42 degrees"] == "tool"
        assert next(role for text, role in roles.items() if "a tool" in text) == "system"
        assert next(role for text, role in roles.items() if '"a":  1' in text) == "assistant"


class TestTemplates:
    def test_a_refusal_says_what_the_template_says(self, subjects: dict[str, Subject]) -> None:
        with pytest.raises(InvalidRequest, match="roles must alternate"):
            subjects["instruct"].tokenizer.render(
                Conversation((Message("user", "a"), Message("user", "b")))
            )

    def test_a_template_that_fails_is_the_requests_fault(
        self, subjects: dict[str, Subject]
    ) -> None:
        call = ToolCall("1", "f", "{}")
        with pytest.raises(InvalidRequest, match="only one tool call"):
            subjects["headers"].tokenizer.render(
                Conversation((Message("user", "a"), Message("assistant", "", None, (call, call))))
            )

    def test_a_template_that_breaks_on_a_conversation_says_what_broke(self) -> None:
        template = ChatTemplate.of("{{ messages[1].content.nothing.there }}", {})
        with pytest.raises(InvalidRequest, match="cannot render this conversation"):
            template.render([{"role": "user", "content": "hi"}], [], True)

    def test_a_template_for_tools_is_used_when_there_are_tools(self) -> None:
        sources = {"default": "plain", "tool_use": "{% generation %}with tools{% endgeneration %}"}
        template = ChatTemplate.of(sources, {})
        assert template.render([], [], True) == "plain"
        assert template.render([], [{"type": "function"}], True) == "with tools"

    def test_the_date_never_changes(self, subjects: dict[str, Subject]) -> None:
        spans = subjects["headers"].tokenizer.render(asked("hi"))
        assert any("Today Date: 26 Jul 2024" in span.text for span in spans)

    def test_arguments_are_parsed_for_templates_that_want_them_so(
        self, subjects: dict[str, Subject]
    ) -> None:
        call = ToolCall("1", "search", '{"b":1,"a":  {"c": "<|eot|>"}}')
        messages = Message("user", "x"), Message("assistant", "", None, (call,))
        written = {
            name: "".join(
                span.text for span in subjects[name].tokenizer.render(Conversation(messages))
            )
            for name in ("headers", "thinking")
        }
        assert '"parameters": {"b": 1, "a": {"c": "<|eot|>"}}}' in written["headers"]
        assert call.arguments in written["thinking"]

    @pytest.mark.parametrize("arguments", ["not json", "[1]", '"\\ud800"', '{"a":' * 5000])
    def test_arguments_that_are_no_object_stay_text(
        self, subjects: dict[str, Subject], arguments: str
    ) -> None:
        call = ToolCall("1", "search", arguments)
        messages = Message("user", "x"), Message("assistant", "", None, (call,))
        spans = subjects["headers"].tokenizer.render(Conversation(messages))
        assert any(json.dumps(arguments, ensure_ascii=False) in span.text for span in spans)

    def test_key_order_in_schemas_does_not_change_the_prompt(
        self, subjects: dict[str, Subject]
    ) -> None:
        tokenizer = subjects["thinking"].tokenizer
        conversation = _tool_talk("42")
        shuffled = evolve(conversation, tools=(dict(reversed(conversation.tools[0].items())),))
        assert tokenizer.render(conversation) == tokenizer.render(shuffled)

    def test_without_a_template_each_message_is_a_paragraph(self, tmp_path: Path) -> None:
        tokenizer = load(word_level(tmp_path))
        spans = tokenizer.render(asked("hello", "world", "hello"))
        assert [(span.kind, span.text) for span in spans] == [
            (SpanKind.CONTROL, "<s>"),
            (SpanKind.CONTENT, "User: hello\n\nAssistant: world\n\nUser: hello\n\nAssistant:"),
        ]

    def test_a_folder_without_a_tokenizer_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError):
            load(tmp_path)

    def test_a_broken_template_says_so(self, tmp_path: Path) -> None:
        folder = MADE["chatml"](tmp_path)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["chat_template"] = "{% for %}"
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match="template is broken"):
            load(folder)


class TestConversations:
    def test_ten_turns_go_on_from_what_was_sampled(self, tokenizer: Port) -> None:
        builder, texts, known, shares = PromptBuilder(tokenizer), ["question 0"], (), []
        for turn in range(1, 11):
            prompt = builder.build(asked(*texts), known)
            kept = concatenated(known)
            assert prompt.tokens[: len(kept)] == kept
            assert prompt.miss is Miss.NONE
            shares.append(len(kept) / len(prompt))
            answer = f"the answer to {turn} is {turn * 7} \N{GRINNING FACE}"
            sampled = _letter_by_letter(tokenizer, answer)
            known = builder.spans_after(prompt, sampled, answer)
            assert _sampled(known, len(prompt)) == sampled
            texts += [answer, f"question {turn}"]
        assert shares[-1] > 0.85

    def test_the_ids_that_were_sampled_are_not_those_of_the_text(self, tokenizer: Port) -> None:
        answer = "the answer is the answer"
        span = RenderedSpan(SpanKind.CONTENT, "assistant", answer)
        assert _letter_by_letter(tokenizer, answer) != list(tokenizer.encode(span))


def _fields(message: Message) -> dict[str, Json]:
    fields: dict[str, Json] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        fields["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return fields


def _raw_ids(tokenizer: MLXTokenizer, text: str) -> list[int]:
    conversation = Conversation((), text=text)
    return list(PromptBuilder(tokenizer).build_recalling(conversation, lambda _: None).tokens)


def _tool_talk(said: str) -> Conversation:
    """A call of a tool whose description, arguments and result say `said`."""
    tool: dict[str, Json] = {
        "type": "function",
        "function": {
            "name": "look",
            "description": f"a tool {said}",
            "parameters": {"type": "object", "properties": {f"p{said}": {"type": "string"}}},
        },
    }
    call = ToolCall("call1", "look", '{"a":  1, "b": ' + json.dumps(said) + "}")
    messages = (
        Message("user", "look"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", said, tool_call_id="call1"),
    )
    return Conversation(messages, (tool,))


def _equivalents(tokenizer: Port, text: str) -> set[str]:
    """What may come back for `text`, seen from how the tokenizer normalises."""
    if isinstance(tokenizer, MemoryTokenizer):
        return {text}
    backend = tokenizer.decoding.backend
    known = {text}
    if backend.normalizer is not None and type(backend.normalizer).__name__ == "NFC":
        known = {backend.normalizer.normalize_str(text)}
    if tokenizer.decoding.strips:
        known |= {one.removeprefix(" ") for one in known}
    # SentencePiece spells a space by a character that text may hold itself.
    return known | {one.replace(SPACE, " ") for one in known}


def _spellable(tokenizer: Port, text: str) -> bool:
    """Whether the vocabulary has all bytes of `text`: real ones lack some that they never saw."""
    if isinstance(tokenizer, MemoryTokenizer) or tokenizer.decoding.strips:
        return True
    vocab = tokenizer.decoding.backend.get_vocab()
    return all(_alphabet()[byte] in vocab or f"<0x{byte:02X}>" in vocab for byte in text.encode())


def _alphabet() -> dict[int, str]:
    names = sorted(cuts.ByteLevel.alphabet())
    shown = {ord(name): name for name in names if ord(name) < 0x100}
    hidden = iter(name for name in names if ord(name) >= 0x100)
    return {byte: shown.get(byte) or next(hidden) for byte in range(256)}


def _undated(subject: Subject, ids: list[int]) -> list[int]:
    """`ids` without the head in which transformers writes today's date."""
    if subject.name != "headers":
        return ids
    end = subject.tokenizer.spellings.tokens["<|eot|>"].id
    return ids[ids.index(end) :]


def _letter_by_letter(tokenizer: Port, text: str) -> list[int]:
    """Ids for `text` that no tokenizer would choose: each character by itself."""
    if isinstance(tokenizer, MemoryTokenizer) or not tokenizer.decoding.strips:
        return [
            token
            for char in text
            for token in tokenizer.encode(RenderedSpan(SpanKind.CONTENT, "assistant", char))
        ]
    vocab = tokenizer.decoding.backend.get_vocab()
    ids = []
    for char in f"{SPACE}{text}".replace(" ", SPACE):
        names = [char] if char in vocab else [f"<0x{byte:02X}>" for byte in char.encode()]
        ids += [vocab[name] for name in names]
    return ids


def _sampled(spans: Sequence[Span], prompt: int) -> list[int]:
    return list(concatenated(spans)[prompt:])
