"""A tokenizer without a model: bytes, pairs of letters, and control tokens in the style of ChatML.

Deliberately awkward, like real ones: most texts have several tokenisations, so that sampled ids
differ from those that the same text is encoded to; characters span tokens, and some tokens hold
the end of one character and the beginning of the next.
"""

import json
from codecs import getincrementaldecoder
from collections.abc import Iterator
from itertools import product
from string import ascii_lowercase
from typing import Any

from attrs import define, field, frozen

from agentcache.domain.answer import AnswerFormat
from agentcache.domain.conversation import Conversation, Message, encodable
from agentcache.domain.errors import IntegrityError, InvalidRequest
from agentcache.domain.spans import RenderedSpan, SpanKind
from agentcache.domain.spellings import ControlToken, Spellings, unused_mark
from agentcache.domain.tokens import Tokens, tokens
from agentcache.domain.tool_prompt import CALLS, parse_calls
from agentcache.domain.tools import tools_json
from agentcache.ports.grammar import Lexicon
from agentcache.ports.tokenizer import Detokenizer

_SPECIAL = ("<|im_start|>", "<|im_end|>")
_PLAIN = ("<think>", "</think>", "<tool_call>", "</tool_call>")
# 256 bytes, then the control tokens, then pairs of letters, then pieces of three-byte characters.
_CONTROL = {text: 256 + rank for rank, text in enumerate((*_SPECIAL, *_PLAIN))}
_PAIRS = [(a + b).encode() for a, b in product(ascii_lowercase + " ", repeat=2)]
_BROKEN = [b"\xe2\x82", b"\x82\xac", b"\xac\xe2", b"\xac "]
_PIECES = [bytes([byte]) for byte in range(256)] + [b""] * len(_CONTROL) + _PAIRS + _BROKEN
_IDS = {piece: token for token, piece in enumerate(_PIECES) if piece}
_TEXTS = {token: text for text, token in _CONTROL.items()}

VOCABULARY = len(_PIECES)
END = _CONTROL["<|im_end|>"]
ROLES = ("system", "user", "assistant", "tool")


@frozen(eq=False)
class MemoryTokenizer:
    """A Tokenizer with VOCABULARY ids; END ends a turn. It needs no files and no model.

    Roles need not alternate; a system message may stand anywhere. Raises InvalidRequest for
    unknown roles, lone surrogates, and when there is no message.
    """

    _spellings: Spellings = field(
        init=False,
        factory=lambda: Spellings.of(
            ControlToken(text, token, special=text in _SPECIAL) for text, token in _CONTROL.items()
        ),
    )

    def render(
        self, conversation: Conversation, generation_prompt: bool = True
    ) -> tuple[RenderedSpan, ...]:
        if isinstance(conversation.text, str):
            return tuple(self._split("user", encodable(conversation.text, "prompt")))
        if not conversation.messages:
            raise InvalidRequest("there must be at least one message", "messages")
        spans = [*self._tools(conversation)]
        for number, message in enumerate(conversation.messages):
            spans += self._turn(message, f"messages[{number}]")
        if generation_prompt:
            spans += _control("<|im_start|>"), _content("assistant", "assistant\n")
        return tuple(spans)

    def encode(self, span: RenderedSpan, first: bool = False) -> "Tokens[int]":
        if span.kind is SpanKind.CONTENT:
            return tokens(_greedy(span.text.encode()))
        if span.text not in _CONTROL:
            raise IntegrityError(f"{span.text!r} is no control token")
        return tokens((_CONTROL[span.text],))

    def control(self, token: int) -> str | None:
        return _TEXTS.get(token)

    def piece(self, token: int) -> bytes:
        return _TEXTS[token].encode() if token in _TEXTS else _PIECES[token]

    def detokenizer(self) -> Detokenizer:
        return _Detokenizer()

    def answer_format(self) -> AnswerFormat:
        return AnswerFormat(("<think>", "</think>"), CALLS, parse_calls)

    def lexicon(self) -> Lexicon:
        pieces = tuple(_TEXTS[n].encode() if n in _TEXTS else p for n, p in enumerate(_PIECES))
        return Lexicon(pieces, frozenset(_TEXTS), lambda text: list(_greedy(text.encode())))

    def _tools(self, conversation: Conversation) -> Iterator[RenderedSpan]:
        if conversation.tools:
            yield _control("<|im_start|>")
            yield _content(
                "system", f"system\n{encodable(tools_json(conversation.tools), 'tools')}"
            )
            yield _control("<|im_end|>")
            yield _content("", "\n")

    def _turn(self, message: Message, place: str) -> Iterator[RenderedSpan]:
        role = "system" if message.role == "developer" else message.role
        if role not in ROLES:
            raise InvalidRequest(f"{place} has the unknown role {role!r}", f"{place}.role")
        yield _control("<|im_start|>")
        said = f"{role}\n{encodable(message.content, place)}"
        yield from self._said(role, said) if role == "assistant" else (_content(role, said),)
        for call in message.tool_calls:
            text = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
            yield _control("<tool_call>")
            yield _content(role, encodable(text, place))
            yield _control("</tool_call>")
        yield _control("<|im_end|>")
        yield _content("", "\n")

    def _said(self, role: str, text: str) -> Iterator[RenderedSpan]:
        """An assistant's words, in which <think> and <tool_call> are control again."""
        mark = unused_mark((text,))
        yield from self._split(role, self._spellings.hidden(text, mark, speaks=True), mark)

    def _split(self, role: str, text: str, mark: str = "") -> Iterator[RenderedSpan]:
        for kind, piece in self._spellings.split(text, mark):
            yield _control(piece) if kind is SpanKind.CONTROL else _content(role, piece)


@define(eq=False)
class _Detokenizer:
    """Bytes that are no UTF-8 become U+FFFD; special tokens have no text."""

    _decoder: Any = field(factory=lambda: getincrementaldecoder("utf-8")("replace"), init=False)

    def add(self, token: int) -> str:
        text = _TEXTS.get(token, "")
        piece = text.encode() if text in _PLAIN else _PIECES[token]
        decoded: str = self._decoder.decode(piece)
        return decoded

    def finish(self) -> str:
        return ""


def _greedy(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        size = 2 if data[at : at + 2] in _IDS else 1
        yield _IDS[data[at : at + size]]
        at += size


def _control(text: str) -> RenderedSpan:
    return RenderedSpan(SpanKind.CONTROL, "", text)


def _content(role: str, text: str) -> RenderedSpan:
    return RenderedSpan(SpanKind.CONTENT, role, text)
