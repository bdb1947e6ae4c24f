"""Raw text as a prompt: what is remembered of it goes on as it was, the rest is tokenised."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from agentcache.domain.conversation import Conversation
from agentcache.domain.errors import InvalidRequest
from agentcache.domain.request import Miss, Prompt
from agentcache.domain.session import Session
from agentcache.domain.spans import RenderedSpan, Span, SpanKind, concatenated, matching_spans
from agentcache.domain.tokens import Tokens, common_prefix, tokens
from agentcache.ports.tokenizer import Tokenizer

Recall = Callable[[Sequence[RenderedSpan]], Session | None]


def raw_prompt(tokenizer: Tokenizer, text: str | tuple[int, ...], recall: Recall) -> Prompt:
    """The prompt that is `text`, or these token ids and no others.

    Text goes on from the ids of the session that `recall` finds by what was rendered. Raises
    InvalidRequest when there is not one token in it.
    """
    if isinstance(text, str):
        rendered = tokenizer.render(Conversation((), text=text))
        session = recall(rendered)
        spans = _adopted(tokenizer, rendered, session.spans if session else ())
    else:
        spans = tuple(_spans_of(tokenizer, text))
        session = recall([RenderedSpan(span.kind, span.role, span.text) for span in spans])
    ids = concatenated(spans)
    if not ids:
        raise InvalidRequest("the prompt is empty", "prompt")
    miss = _miss(ids, concatenated(session.spans)) if session else Miss.NONE
    return Prompt(spans, ids, body=len(ids), miss=miss, raw=True)


def _adopted(
    tokenizer: Tokenizer, rendered: Sequence[RenderedSpan], known: Sequence[Span]
) -> tuple[Span, ...]:
    count = matching_spans(known, rendered)
    spans, begins = list(known[:count]), _preamble(tokenizer)
    for at, span in enumerate(rendered[count:], count):
        before = known[at] if at == count < len(known) else None
        ids = _continued(tokenizer, span, before)
        if ids is None:
            ids = tokenizer.encode(span, first=at == begins)
        spans.append(Span(span.kind, span.role, span.text, ids))
    return tuple(spans)


def _continued(
    tokenizer: Tokenizer, span: RenderedSpan, before: Span | None
) -> "Tokens[int] | None":
    """The ids of `before` and of what `span` says after it; None unless that is how words end.

    Tokens do not reach across where white space begins: what is cut there has no seam.
    """
    if before is None or span.kind is SpanKind.CONTROL or before.kind is SpanKind.CONTROL:
        return None
    rest = span.text.removeprefix(before.text)
    if len(rest) == len(span.text) or not rest[:1].isspace() or before.text[-1:].isspace():
        return None
    return before.ids + tokenizer.encode(RenderedSpan(span.kind, span.role, rest))


def _preamble(tokenizer: Tokenizer) -> int:
    """How many spans the tokenizer itself puts before a text."""
    return len(tokenizer.render(Conversation((), text="a"))) - 1


def _spans_of(tokenizer: Tokenizer, ids: Sequence[int]) -> Iterator[Span]:
    for control, run in groupby(ids, tokenizer.control):
        if control is None:
            content = tokens(run)
            yield Span(SpanKind.CONTENT, "user", _decoded(tokenizer, content), content)
        else:
            for token in run:
                yield Span(SpanKind.CONTROL, "", control, tokens((token,)))


def _decoded(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    detokenizer = tokenizer.detokenizer()
    return "".join([*map(detokenizer.add, ids), detokenizer.finish()])


def _miss(ids: "Tokens[int]", before: "Tokens[int]") -> Miss:
    same = common_prefix(ids, 0, before, 0)
    return Miss.NONE if same == len(before) else Miss.MESSAGES_CHANGED
