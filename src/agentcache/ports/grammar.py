"""The port to the engine that keeps answers to a grammar."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Protocol

from attrs import field, frozen

from agentcache.domain.guide import Grammar, Guide


@frozen(eq=False)
class Lexicon:
    """A vocabulary as bytes: what a grammar over text needs to know of a tokenizer.

    `pieces` are the bytes of each token, by id; `control` the ids that are no text, whatever their
    piece says. `encode` gives the ids of a text.
    """

    pieces: Sequence[bytes] = field(repr=False)
    control: frozenset[int] = field(repr=False)
    encode: Callable[[str], Sequence[int]] = field(repr=False)

    def spelled(self, text: str) -> str:
        """`text` for a grammar: control tokens by their id, all else quoted."""
        by_text = {self.pieces[token].decode(): token for token in self.control}
        by_text.pop("", None)
        pattern = "|".join(map(re.escape, sorted(by_text, key=len, reverse=True)))
        parts = re.split(f"({pattern})", text) if pattern else [text]
        words = (f"<[{by_text[part]}]>" if part in by_text else json.dumps(part) for part in parts)
        return " ".join(word for word in words if word != '""')


class Grammars(Protocol):
    """Makes guides for one vocabulary. Safe to call from any thread."""

    def guide(self, grammar: Grammar) -> Guide:
        """A guide that keeps an answer to `grammar`.

        Raises InvalidRequest, which names what is wrong, for a grammar that cannot be used.
        """
        ...

    def spelled(self, text: str) -> str:
        """See `Lexicon.spelled`. Raises InvalidRequest where there can be no grammars."""
        ...
