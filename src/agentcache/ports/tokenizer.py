"""The port to the model's tokenizer and chat template."""

from typing import Protocol

from agentcache.domain.answer import AnswerFormat
from agentcache.domain.conversation import Conversation
from agentcache.domain.spans import RenderedSpan
from agentcache.domain.tokens import Tokens
from agentcache.ports.grammar import Lexicon


class Detokenizer(Protocol):
    """Turns one sequence's sampled ids into text as they come."""

    def add(self, token: int) -> str:
        """The text that became certain with `token`: "" while a character is incomplete."""
        ...

    def finish(self) -> str:
        """The text still held back; an incomplete character at the very end is left out."""
        ...


class Tokenizer(Protocol):
    """Renders, encodes and decodes. Safe to call from several threads at once."""

    def render(
        self, conversation: Conversation, generation_prompt: bool = True
    ) -> tuple[RenderedSpan, ...]:
        """The conversation as the model reads it, cut into control tokens and content.

        Content never becomes control: spellings of special tokens in what somebody said stay text.
        In raw text they are control; before it comes what the tokenizer itself puts there, unless
        the text begins with that. Raises InvalidRequest when the model's template refuses the
        conversation.
        """
        ...

    def encode(self, span: RenderedSpan, first: bool = False) -> "Tokens[int]":
        """The ids of one span: exactly one id for control, any number for content.

        `first` tells that nothing stands before it: some tokenizers put a space there.
        """
        ...

    def control(self, token: int) -> str | None:
        """The text of a control token; None when `token` is an ordinary one."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes of one token by itself, a control token's spelling."""
        ...

    def detokenizer(self) -> Detokenizer:
        """A fresh detokenizer."""
        ...

    def answer_format(self) -> AnswerFormat:
        """How the model marks what is no plain text; `detokenizer` gives these markers as text."""
        ...

    def lexicon(self) -> Lexicon | None:
        """The vocabulary as bytes; None where tokens have no bytes of their own."""
        ...
