"""The tokenizer of an MLX folder: its vocabulary, its added tokens, its chat template."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from attrs import evolve, field, frozen
from jinja2 import TemplateError
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from agentcache.adapters.mlx.answer_format import answer_format
from agentcache.adapters.mlx.chat_template import ChatTemplate
from agentcache.adapters.mlx.content import ContentEncoder
from agentcache.adapters.mlx.detokenizer import Decoding
from agentcache.adapters.mlx.roles import labelled
from agentcache.adapters.mlx.said import Arguments, said
from agentcache.domain.answer import PLAIN, AnswerFormat
from agentcache.domain.conversation import Conversation, Json, Message, ToolCall, encodable
from agentcache.domain.errors import IntegrityError, InvalidRequest, ModelError
from agentcache.domain.spans import RenderedSpan, SpanKind
from agentcache.domain.spellings import ControlToken, Spellings
from agentcache.domain.tokens import Tokens, tokens
from agentcache.domain.tool_prompt import calls_in_words, tools_in_words
from agentcache.ports.grammar import Lexicon
from agentcache.ports.tokenizer import Detokenizer

# Tags that some vocabularies hold as tokens of their own, for text (Gemma).
_HTML = re.compile(
    r"</?(table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|strong|em|b|i|u|s|sub|sup|code"
    r"|p|a|li|ul|ol|br|hr|pre|div|span|img)>"
)


@frozen(eq=False, repr=False)
class MLXTokenizer:
    """A Tokenizer over a Hugging Face one. Nothing of it changes once it is made.

    Added tokens are control when they are special or look like mark-up (`<think>`, `[CALL]`); runs
    of white space, words and HTML tags are text that got a token of its own. `preamble` is what the
    tokenizer itself puts before a text.
    """

    template: ChatTemplate
    spellings: Spellings
    content: ContentEncoder
    decoding: Decoding
    preamble: str = ""
    format: AnswerFormat = PLAIN
    arguments: Arguments = "text"
    shows_tools: bool = True
    shows_calls: bool = True
    _control: Mapping[int, str] = field(init=False)

    @_control.default
    def _by_id(self) -> Mapping[int, str]:
        return {token.id: token.text for token in self.spellings.tokens.values()}

    @classmethod
    def of(
        cls,
        backend: Backend,
        chat_template: str | Mapping[str, str] | None,
        variables: Mapping[str, str],
        form: AnswerFormat = PLAIN,
    ) -> "MLXTokenizer":
        """Wrap `backend`. `variables` are the named special tokens that a template may use.

        `form` is how the model marks thoughts and calls: assistants say these markers.
        """
        added: dict[int, AddedToken] = backend.get_added_tokens_decoder()
        text_tokens = {id_: token for id_, token in added.items() if not _steers(token)}
        control = {id_: token for id_, token in added.items() if id_ not in text_tokens}
        texts = {id_: token.content for id_, token in control.items()}
        markers = {marker for pair in (form.thinks, form.calls) for marker in pair or ()}
        silent = frozenset(
            id_ for id_, token in added.items() if token.special and token.content not in markers
        )
        preamble = _preamble(backend, texts)
        written = "" if chat_template else preamble
        tokenizer = cls(
            template=ChatTemplate.of(chat_template, {**variables, "preamble": written}),
            preamble=preamble,
            spellings=Spellings.of(_spelled(id_, token, silent) for id_, token in control.items()),
            content=ContentEncoder.of(backend, text_tokens, texts),
            decoding=Decoding.of(
                backend, {id_: token.content for id_, token in added.items()}, silent
            ),
        )
        return evolve(
            tokenizer,
            format=form,
            arguments=_arguments(tokenizer),
            shows_tools=_shows_tools(tokenizer),
            shows_calls=_shows_calls(tokenizer),
        )

    def render(
        self, conversation: Conversation, generation_prompt: bool = True
    ) -> tuple[RenderedSpan, ...]:
        if isinstance(conversation.text, str):
            return self._raw(encodable(conversation.text, "prompt"))
        if not self.shows_calls:
            conversation = calls_in_words(conversation)
        if not self.shows_tools:
            conversation = tools_in_words(conversation)
        fields = said(conversation, self.spellings, self.arguments)
        effort = conversation.effort
        text = self.template.render(fields.messages, fields.tools, generation_prompt, effort)
        pieces = list(self.spellings.split(text, fields.mark))
        return labelled(pieces, conversation, self.spellings, generation_prompt)

    def _raw(self, text: str) -> tuple[RenderedSpan, ...]:
        begun = text if text.startswith(self.preamble) else self.preamble + text
        return tuple(
            RenderedSpan(kind, "user" if kind is SpanKind.CONTENT else "", piece)
            for kind, piece in self.spellings.split(begun)
        )

    def encode(self, span: RenderedSpan, first: bool = False) -> "Tokens[int]":
        if span.kind is SpanKind.CONTENT:
            return self.content.encode(span.text, first)
        token = self.spellings.tokens.get(span.text)
        if token is None:
            raise IntegrityError(f"{span.text!r} is no control token of this model")
        return tokens((token.id,))

    def control(self, token: int) -> str | None:
        return self._control.get(token)

    def piece(self, token: int) -> bytes:
        if self.decoding.piece is not None:
            return self.decoding.piece(token)
        return self.decoding.backend.decode([token], skip_special_tokens=False).encode()

    def detokenizer(self) -> Detokenizer:
        return self.decoding.stream()

    def answer_format(self) -> AnswerFormat:
        return self.format

    def lexicon(self) -> Lexicon | None:
        piece = self.decoding.piece
        if piece is None:
            return None
        backend = self.decoding.backend
        pieces = tuple(map(piece, range(backend.get_vocab_size())))
        control = frozenset(self._control) | self.decoding.silent
        return Lexicon(pieces, control, self.content.encode)


def load(folder: Path) -> MLXTokenizer:
    """The tokenizer in `folder`. Raises ModelError when there is none that can be used."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it asks for PyTorch
    from mlx_lm import tokenizer_utils

    try:
        found = tokenizer_utils.load(folder, {"local_files_only": True})
        backend = getattr(found, "backend_tokenizer", None)
        if not isinstance(backend, Backend):
            raise ModelError(str(folder), "it has no tokenizer.json", _CONVERT)
        backend.no_truncation()
        backend.no_padding()
        form = answer_format(found)
        return MLXTokenizer.of(backend, found.chat_template, found.special_tokens_map, form)
    except TemplateError as error:
        raise ModelError(str(folder), f"its chat template is broken: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(str(folder), f"its tokenizer cannot be loaded: {error}") from error


_CONVERT = "Convert it to a fast tokenizer with transformers' save_pretrained"


def _steers(token: AddedToken) -> bool:
    text = token.content
    if token.special:
        return True
    return (
        len(text) > 1
        and not _is_word(text[0])
        and not _is_word(text[-1])
        and not (_HTML.fullmatch(text))
    )


def _is_word(char: str) -> bool:
    return char.isalnum() or char.isspace() or char in "_\N{LOWER ONE EIGHTH BLOCK}"


def _spelled(id_: int, token: AddedToken, silent: frozenset[int]) -> ControlToken:
    return ControlToken(token.content, id_, id_ in silent, token.lstrip, token.rstrip)


def _preamble(backend: Backend, control: Mapping[int, str]) -> str:
    """What the tokenizer itself puts before a text; templates write it on their own."""
    ids, text = backend.encode("a").ids, backend.encode("a", add_special_tokens=False).ids
    before = next((at for at in range(len(ids)) if ids[at : at + len(text)] == text), 0)
    return "".join(control.get(token, "") for token in ids[:before])


def _arguments(tokenizer: MLXTokenizer) -> Arguments:
    """Whether the template writes the arguments of a tool call as they are, if they are text.

    That keeps them as the model wrote them. Other templates want them parsed.
    """
    text = '{"a":  1}'
    call = ToolCall("call00001", "probe", text)
    asked = Message("user", "x"), Message("assistant", "", tool_calls=(call,))
    try:
        spans = tokenizer.render(Conversation(asked), generation_prompt=False)
    except InvalidRequest:
        return "mapping"
    return "text" if any(text in span.text for span in spans) else "mapping"


_PROBE = "a_tool_that_is_asked_for"


def _shows_tools(tokenizer: MLXTokenizer) -> bool:
    """Whether the template writes the tools that there are."""
    tool: Mapping[str, Json] = {
        "type": "function",
        "function": {"name": _PROBE, "description": "", "parameters": {}},
    }
    return _PROBE in _text(tokenizer, Conversation((Message("user", "x"),), (tool,)))


def _shows_calls(tokenizer: MLXTokenizer) -> bool:
    """Whether the template writes what was called, and what came of it."""
    call = ToolCall("call00001", _PROBE, "{}")
    asked = (
        Message("user", "x"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", _PROBE, tool_call_id=call.id),
    )
    return _text(tokenizer, Conversation(asked)).count(_PROBE) == 2


def _text(tokenizer: MLXTokenizer, conversation: Conversation) -> str:
    """The conversation as the template writes it; nothing where it refuses to."""
    try:
        return "".join(span.text for span in tokenizer.render(conversation))
    except InvalidRequest:
        return ""
