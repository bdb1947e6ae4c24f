"""Spans: the pieces of a rendered prompt, by which a returning conversation is recognised."""

from collections.abc import Iterable, Sequence
from enum import Enum
from hashlib import blake2b

from attrs import field, frozen

from agentcache.domain.tokens import Tokens, tokens

CHAIN_BYTES = 16


class SpanKind(Enum):
    """Control tokens steer the model; content is what somebody said."""

    CONTROL = "control"
    CONTENT = "content"


@frozen
class RenderedSpan:
    """A piece of the rendered prompt before it is tokenised.

    `role` is whose words it carries: "" for control and for what only separates, "assistant" for
    all that holds an answer.
    """

    kind: SpanKind
    role: str
    text: str


@frozen
class Span:
    """A piece of the rendered prompt with the token ids that stand for it.

    The ids of assistant content are those that were sampled, which need not be those that the
    tokenizer would choose for the same text.
    """

    kind: SpanKind
    role: str
    text: str
    ids: "Tokens[int]" = field(eq=False)

    def says(self, other: "RenderedSpan | Span") -> bool:
        """Whether both are the same kind and the same text: then the ids may be adopted."""
        return self.kind is other.kind and self.text == other.text


def matching_spans(known: Sequence[Span], rendered: Sequence[RenderedSpan | Span]) -> int:
    """How many leading spans of `rendered` are said by `known`, kind for kind, text for text."""
    for count, (old, new) in enumerate(zip(known, rendered, strict=False)):
        if not old.says(new):
            return count
    return min(len(known), len(rendered))


def concatenated(spans: Iterable[Span]) -> "Tokens[int]":
    """The ids of all spans in order."""
    ids = tokens()
    for span in spans:
        ids.extend(span.ids)
    return ids


def chain(previous: bytes, span: RenderedSpan | Span) -> bytes:
    """A digest of all spans up to and including `span`; `previous` is that of the ones before."""
    digest = blake2b(previous, digest_size=CHAIN_BYTES)
    digest.update(b"\x00" if span.kind is SpanKind.CONTROL else b"\x01")
    digest.update(span.text.encode("utf-8", "surrogatepass"))
    return digest.digest()


def chains(spans: Iterable[RenderedSpan | Span]) -> tuple[bytes, ...]:
    """The chain after every span."""
    found, last = [], b""
    for span in spans:
        last = chain(last, span)
        found.append(last)
    return tuple(found)
