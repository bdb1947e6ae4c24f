"""Spellings of control tokens: hidden in what somebody said, found in what a template wrote.

A chat template mixes both into one text. Before it runs, a mark (a private-use character that
nobody used) is put into every spelling that somebody said; after it, the spellings without a mark
are the template's own, and the marks are taken out again.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from operator import itemgetter

from attrs import field, frozen

from agentcache.domain.errors import InvalidRequest
from agentcache.domain.spans import SpanKind

# Unicode's White_Space, which the tokenizers' regular expressions go by; Python's has four more.
_WHITE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
_PRIVATE_USE = ((0xE000, 0xF900), (0xF0000, 0xFFFFE), (0x100000, 0x10FFFE))


@frozen
class ControlToken:
    """How a control token is spelled, and its `id`.

    A `special` one has no text of its own. `lstrip` and `rstrip` tell that it swallows the white
    space before and after it.
    """

    text: str
    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False


@frozen(eq=False)
class Spellings:
    """All control tokens of a tokenizer, by spelling. A spelling has at least two characters."""

    tokens: Mapping[str, ControlToken]
    _find: "re.Pattern[str] | None" = field(repr=False)
    _every: "_Hiding" = field(repr=False)
    _special: "_Hiding" = field(repr=False)

    @classmethod
    def of(cls, tokens: Iterable[ControlToken]) -> "Spellings":
        """Prepare for `tokens`; spellings of one character cannot be hidden and are left out."""
        known = {token.text: token for token in tokens if len(token.text) > 1}
        words = sorted(known)
        special = [word for word in words if known[word].special]
        find = re.compile(_any_of(words)) if words else None
        return cls(known, find, _Hiding.of(words), _Hiding.of(special))

    def hidden(self, text: str, mark: str, *, speaks: bool = False, compared: bool = False) -> str:
        """`text` with a mark in every spelling. With `speaks` (the assistant), special ones only.

        It is marked too where it could complete a spelling together with what the template writes
        beside it: at its ends, and, unless templates compare it with words of their own
        (`compared`), inside.
        """
        return (self._special if speaks else self._every).hide(text, mark, compared)

    def split(self, text: str, mark: str = "") -> Iterator[tuple[SpanKind, str]]:
        """Cut `text` at the spellings in it, leftmost and longest first; take out every `mark`.

        White space that a control token swallows is left out: no id stands for it.
        """
        start, strip = 0, False
        for match in self._find.finditer(text) if self._find else ():
            token = self.tokens[match[0]]
            before = text[start : match.start()]
            yield from _content(before, mark, strip, token.lstrip)
            yield SpanKind.CONTROL, token.text
            start, strip = match.end(), token.rstrip
        yield from _content(text[start:], mark, strip, False)


def _content(text: str, mark: str, lstrip: bool, rstrip: bool) -> Iterator[tuple[SpanKind, str]]:
    text = text.lstrip(_WHITE) if lstrip else text
    text = text.rstrip(_WHITE) if rstrip else text
    text = unmarked(text, mark) if mark else text
    if text:
        yield SpanKind.CONTENT, text


@frozen(eq=False)
class _Hiding:
    """Puts marks into one set of spellings (`words`, sorted; `backwards`, the same reversed)."""

    words: Sequence[str]
    joined: str
    backwards: Sequence[str]
    firsts: frozenset[str]
    lasts: frozenset[str]
    longest: int
    pattern: "re.Pattern[str] | None"

    @classmethod
    def of(cls, words: Sequence[str]) -> "_Hiding":
        # The first character alone is consumed, so that overlapping spellings are all found.
        branches = [f"{re.escape(first)}(?={_any_of(rests)})" for first, rests in _by_first(words)]
        return cls(
            words=words,
            joined="\n".join(words),
            backwards=sorted(word[::-1] for word in words),
            firsts=frozenset(word[0] for word in words),
            lasts=frozenset(word[-1] for word in words),
            longest=max(map(len, words), default=0),
            pattern=re.compile("|".join(branches)) if words else None,
        )

    def hide(self, text: str, mark: str, compared: bool) -> str:
        if self.pattern is None or not text:
            return text
        before = mark if self._ends_one(text) else ""
        after = mark if self._begins_one(text) else ""
        hidden = before + self.pattern.sub(rf"\g<0>{mark}", text) + after
        if hidden == text and not compared and text in self.joined:
            return text[:1] + mark + text[1:]
        return hidden

    def _begins_one(self, text: str) -> bool:
        """Whether some end of `text` is a spelling's beginning."""
        sizes = range(1, min(len(text), self.longest - 1) + 1)
        return any(
            text[-size] in self.firsts and _is_beginning(text[-size:], self.words) for size in sizes
        )

    def _ends_one(self, text: str) -> bool:
        """Whether some beginning of `text` is a spelling's end."""
        sizes = range(1, min(len(text), self.longest - 1) + 1)
        return any(
            text[size - 1] in self.lasts and _is_beginning(text[size - 1 :: -1], self.backwards)
            for size in sizes
        )


def _is_beginning(text: str, words: Sequence[str]) -> bool:
    at = bisect_left(words, text)
    return at < len(words) and words[at].startswith(text)


def _any_of(words: Iterable[str]) -> str:
    """A pattern for the longest of `words` (sorted) that stands at a place: a trie, as text."""
    words = list(words)
    branches = [re.escape(first) + _any_of(rests) for first, rests in _by_first(words)]
    if not branches:
        return ""
    if "" in words:
        return f"(?:{'|'.join(branches)})?"
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _by_first(words: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    for first, group in groupby(filter(None, words), itemgetter(0)):
        yield first, [word[1:] for word in group]


def unused_mark(texts: Iterable[str]) -> str:
    """A private-use character that is in none of `texts`, nor written as a JSON escape there."""
    said = "\n".join(texts)
    escaped = said.lower() if "\\u" in said else ""
    for code in chain.from_iterable(range(low, high) for low, high in _PRIVATE_USE):
        mark = chr(code)
        if mark not in said and _json_escapes(mark)[0] not in escaped:
            return mark
    raise InvalidRequest("the conversation uses every private-use character", "messages")


def unmarked(text: str, mark: str) -> str:
    """`text` without its marks, also where a template wrote them as JSON escapes."""
    for spelled in (mark, *_json_escapes(mark)):
        text = text.replace(spelled, "")
    return text


def _json_escapes(mark: str) -> tuple[str, str]:
    units = mark.encode("utf-16-be").hex()
    lower = "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
    return lower, lower.upper().replace("\\U", "\\u")
