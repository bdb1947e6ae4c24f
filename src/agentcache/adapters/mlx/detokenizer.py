"""Streaming detokenizers: text that is given out never changes, and no space is cleaned up.

Most vocabularies spell bytes, in one of two ways, and are decoded token by token; for any other
decoder, windows of tokens are decoded and compared.
"""

import json
from codecs import getincrementaldecoder
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from attrs import define, field, frozen
from tokenizers import Tokenizer

from agentcache.ports.tokenizer import Detokenizer

_UTF8 = getincrementaldecoder("utf-8")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_SPM_STEPS = {"Replace", "ByteFallback", "Fuse", "Strip"}

Piece = Callable[[int], bytes]


@frozen(eq=False)
class Decoding:
    """How the ids of `backend` become text. `added` are its added tokens' texts by id.

    The ids in `silent` have no text.
    """

    backend: Tokenizer
    added: Mapping[int, str]
    silent: frozenset[int]
    piece: Piece | None
    strips: bool

    @classmethod
    def of(cls, backend: Tokenizer, added: Mapping[int, str], silent: frozenset[int]) -> "Decoding":
        """Find out from the backend's decoder how to decode."""
        state = _state(backend)
        if state.get("type") == "ByteLevel":
            return cls(backend, added, silent, cls._pieces(backend, added, _byte_level), False)
        if _is_sentencepiece(state):
            pieces = cls._pieces(backend, added, _sentencepiece)
            return cls(backend, added, silent, pieces, _strips_first_space(state))
        return cls(backend, added, silent, None, False)

    @staticmethod
    def _pieces(
        backend: Tokenizer, added: Mapping[int, str], spelled: Callable[[str], bytes]
    ) -> Piece:
        def piece(token: int) -> bytes:
            if token in added:
                return added[token].encode()
            return spelled(backend.id_to_token(token) or "")

        return cache(piece)

    def stream(self) -> Detokenizer:
        """A fresh detokenizer."""
        if self.piece is None:
            return _Windows(self.backend, self.silent)
        return _Bytes(self.piece, self.silent, self.strips)


@define(eq=False)
class _Bytes:
    """For vocabularies that spell bytes. A character is given out when its last byte is there.

    Bytes that are no UTF-8 become U+FFFD. With `strips`, one space at the very beginning is left
    out: the tokenizer puts it before every text it encodes.
    """

    piece: Piece
    silent: frozenset[int]
    strips: bool
    _decoder: Any = field(factory=lambda: _UTF8("replace"), init=False)

    def add(self, token: int) -> str:
        if token in self.silent:
            return ""
        text: str = self._decoder.decode(self.piece(token))
        if self.strips and text:
            self.strips = False
            text = text.removeprefix(" ")
        return text

    def finish(self) -> str:
        held, _ = self._decoder.getstate()
        text: str = held.decode("utf-8", "replace")
        # One U+FFFD is a character that lacks bytes; several (a surrogate) never become one.
        return text if len(text) > 1 else ""


@define(eq=False)
class _Windows:
    """For all other decoders: what a token adds to the text of the few tokens before it."""

    backend: Tokenizer
    silent: frozenset[int]
    _window: list[int] = field(factory=list, init=False)
    _read: int = field(default=0, init=False)

    def add(self, token: int) -> str:
        if token in self.silent:
            return ""
        self._window.append(token)
        before, now = self._decode(self._window[: self._read]), self._decode(self._window)
        if now.endswith(_REPLACEMENT) or not now.startswith(before):
            return ""
        del self._window[: self._read]
        self._read = len(self._window)
        return now[len(before) :]

    def finish(self) -> str:
        before, now = self._decode(self._window[: self._read]), self._decode(self._window)
        return now.rstrip(_REPLACEMENT)[len(before) :] if now.startswith(before) else ""

    def _decode(self, ids: list[int]) -> str:
        return self.backend.decode(ids, skip_special_tokens=True)


def _state(backend: Tokenizer) -> Mapping[str, Any]:
    if backend.decoder is None:
        return {}
    state: Mapping[str, Any] = json.loads(backend.decoder.__getstate__())
    return state


def _is_sentencepiece(state: Mapping[str, Any]) -> bool:
    if state.get("type") == "Metaspace":
        return bool(state.get("replacement") == _SPACE)
    steps = state.get("decoders") or ()
    replaces = [step for step in steps if step["type"] == "Replace"]
    return (
        {step["type"] for step in steps} <= _SPM_STEPS
        and [(step["pattern"], step["content"]) for step in replaces] == [({"String": _SPACE}, " ")]
        and any(step["type"] == "ByteFallback" for step in steps)
        and all(_strips_one(step) for step in steps if step["type"] == "Strip")
    )


def _strips_one(step: Mapping[str, Any]) -> bool:
    return (step["content"], step["start"], step["stop"]) == (" ", 1, 0)


def _strips_first_space(state: Mapping[str, Any]) -> bool:
    if state["type"] == "Metaspace":
        return bool(state.get("prepend_scheme") != "never")
    return any(step["type"] == "Strip" for step in state["decoders"])


def _sentencepiece(token: str) -> bytes:
    """A byte spelled <0xE2>, or text with U+2581 for each space."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.replace(_SPACE, " ").encode()


def _byte_level(token: str) -> bytes:
    """Each character stands for one byte, as in GPT-2's vocabulary."""
    alphabet = _byte_alphabet()
    if all(char in alphabet for char in token):
        return bytes(alphabet[char] for char in token)
    return token.encode()


@cache
def _byte_alphabet() -> Mapping[str, int]:
    """Printable Latin-1 characters stand for themselves, U+0100 and on for the other bytes."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {
        chr(0x100 + rank): byte for rank, byte in enumerate(hidden)
    }
