"""From a conversation to a prompt, and from an answer back to the spans a session keeps.

Clients send history as text. Where a rendered span is the one that the session knows, the session's
ids are used, which for answers are the sampled ones; see "Matching" in the design.
"""

import json
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import groupby

from attrs import evolve, field, frozen

from agentcache.domain.conversation import Conversation, Message
from agentcache.domain.echo import spoken
from agentcache.domain.errors import InvalidRequest
from agentcache.domain.request import Miss, Prompt
from agentcache.domain.session import Session
from agentcache.domain.spans import RenderedSpan, Span, SpanKind, concatenated, matching_spans
from agentcache.domain.tokens import Tokens, common_prefix, tokens
from agentcache.domain.tools import tools_digest, tools_json
from agentcache.domain.volatile import RULES, VolatileRule, settled
from agentcache.ports.tokenizer import Detokenizer, Tokenizer
from agentcache.raw_text import Recall, raw_prompt

_HEADS_KEPT = 128
# What two agents might say first; they have no beginning in common.
_PROBES = ("Hello.", "1 + 1?")
_RETRIES = 8


class PromptBuilder:
    """Renders and tokenises conversations for one model. Safe to call from several threads.

    `rules` say what volatile text is made stable in system messages; () leaves all as it is.
    """

    def __init__(self, tokenizer: Tokenizer, rules: Iterable[VolatileRule] = RULES) -> None:
        self._tokenizer = tokenizer
        self._rules = tuple(rules)
        self._head = lru_cache(_HEADS_KEPT)(self._probed_head)

    def build(
        self, conversation: Conversation, known: Sequence[Span] = (), known_tools: bytes = b""
    ) -> Prompt:
        """The prompt of the next turn. `known` are a session's spans, `known_tools` its digest.

        Raises InvalidRequest when the conversation cannot be rendered.
        """
        conversation = self._told(conversation)
        return self._prompt(conversation, self._tokenizer.render(conversation), known, known_tools)

    def build_recalling(self, conversation: Conversation, recall: Recall) -> Prompt:
        """As `build`, going on from the session that `recall` finds by what was rendered."""
        if conversation.text is not None:
            return raw_prompt(self._tokenizer, conversation.text, recall)
        conversation = self._told(conversation)
        rendered = self._tokenizer.render(conversation)
        session = recall(rendered)
        known = (session.spans, session.tools_digest) if session else ((), b"")
        return self._prompt(conversation, rendered, *known)

    def _prompt(
        self,
        conversation: Conversation,
        rendered: Sequence[RenderedSpan],
        known: Sequence[Span],
        known_tools: bytes,
    ) -> Prompt:
        spans = self._adopted(rendered, known)
        ids = concatenated(spans)
        digest = tools_digest(conversation.tools)
        body = self._body(conversation, rendered, spans)
        shared = min(body, self._shared(conversation, spans, ids))
        prompt = Prompt(spans, ids, shared, body, digest)
        return evolve(prompt, miss=_miss(prompt, known, digest != known_tools))

    def count_known(self, conversation: Conversation, known: Sequence[Span]) -> int:
        """How many of the spans `known` are those of `conversation`, which waits for no answer."""
        try:
            told = self._told(conversation)
            rendered = self._tokenizer.render(told, generation_prompt=False)
        except InvalidRequest:  # some templates want a user to have spoken
            return 0
        return matching_spans(known, rendered)

    def detokenizer(self, prompt: Prompt) -> Detokenizer:
        """One for the answer to `prompt`, which a raw one has told all but the answer."""
        return _going_on(self._tokenizer, prompt.spans[-1:] if prompt.raw else ())

    def spans_after(self, prompt: Prompt, sampled: Sequence[int], text: str) -> tuple[Span, ...]:
        """The session's spans after a turn in which the client got `text` for the `sampled` ids.

        The spans say exactly `text`, after the space that some tokenizers strip from its beginning
        where it goes on after other content. Where `text` ends earlier than what was sampled (a
        stop sequence), the ids of the tokens that lie wholly inside it are kept and the rest of it
        is tokenised again. An end token, and a character never completed, are left out.
        """
        spans = list(prompt.spans)
        said, rest = _said(self._tokenizer, spans[-1:], sampled, text, prompt.raw)
        for control, run in groupby(said, lambda one: self._tokenizer.control(one[0])):
            _append(spans, control, list(run))
        if rest:
            _extend(spans, rest, _encoded(self._tokenizer, rest))
        return tuple(spans)

    def _told(self, conversation: Conversation) -> Conversation:
        """As the model is told it: without what is volatile, its answers in its own words."""
        settled_ = settled(conversation, self._rules)
        return evolve(settled_, messages=tuple(map(spoken, settled_.messages)))

    def _adopted(self, rendered: Sequence[RenderedSpan], known: Sequence[Span]) -> tuple[Span, ...]:
        count = matching_spans(known, rendered)
        fresh = [self._span(span, first=at == 0) for at, span in enumerate(rendered[count:], count)]
        return (*known[:count], *fresh)

    def _span(self, span: RenderedSpan, first: bool) -> Span:
        return Span(span.kind, span.role, span.text, self._tokenizer.encode(span, first))

    # -- how much is shared, and where the generation prompt begins

    def _shared(self, conversation: Conversation, spans: Sequence[Span], ids: "Tokens[int]") -> int:
        system, tools = _leading_system(conversation), tools_json(conversation.tools)
        head = self._head(_Opening(system, tools, _of_system(spans)))
        return common_prefix(ids, 0, head, 0)

    def _probed_head(self, opening: "_Opening") -> "Tokens[int]":
        """The ids that all conversations with this opening begin with."""
        asked = [
            Conversation(
                (*opening.system, Message("user", probe)), tuple(json.loads(opening.tools or "[]"))
            )
            for probe in _PROBES
        ]
        try:
            one, other = (self._tokenizer.render(conversation) for conversation in asked)
        except InvalidRequest:
            return tokens()
        spans = self._adopted(one, opening.spans)
        whole = spans[: matching_spans(spans, other)]
        if any(span.role == "system" for span in whole):
            return concatenated(whole)
        # Templates without a system role put it into the first user message.
        length = self._common(spans, other)
        in_user = spans[len(whole) : len(whole) + 1]
        system_in_user = any(span.role == "system" for span in in_user)
        return concatenated(spans)[:length] if system_in_user else tokens()

    def _body(
        self, conversation: Conversation, rendered: Sequence[RenderedSpan], spans: Sequence[Span]
    ) -> int:
        usual = self._generation_prompt
        if usual and _texts(rendered[-len(usual) :]) == _texts(usual):
            return sum(len(span.ids) for span in spans[: -len(usual)])
        return self._common(spans, self._tokenizer.render(conversation, generation_prompt=False))

    @cached_property
    def _generation_prompt(self) -> tuple[RenderedSpan, ...]:
        """The spans that are all of the generation prompt, where they are spans of their own."""
        probe = Conversation((Message("user", _PROBES[0]),))
        try:
            without = self._tokenizer.render(probe, generation_prompt=False)
            rendered = self._tokenizer.render(probe)
        except InvalidRequest:
            return ()
        head = rendered[: len(without)]
        return rendered[len(without) :] if _texts(head) == _texts(without) else ()

    def _common(self, spans: Sequence[Span], rendered: Sequence[RenderedSpan]) -> int:
        """How many ids `spans` begins with that `rendered` begins with too."""
        count = matching_spans(spans, rendered)
        length = sum(len(span.ids) for span in spans[:count])
        if count == min(len(spans), len(rendered)):
            return length
        other = self._tokenizer.encode(rendered[count], first=count == 0)
        return length + common_prefix(spans[count].ids, 0, other, 0)


@frozen
class _Opening:
    """System messages and tools; what `spans` have of them need not be tokenised again."""

    system: tuple[Message, ...]
    tools: str
    spans: tuple[Span, ...] = field(eq=False)


def _of_system(spans: Sequence[Span]) -> tuple[Span, ...]:
    last = max((at for at, span in enumerate(spans) if span.role == "system"), default=-1)
    return tuple(spans[: last + 1])


def _said(
    tokenizer: Tokenizer, before: Sequence[Span], sampled: Sequence[int], text: str, raw: bool
) -> tuple[list[tuple[int, str]], str]:
    """The sampled ids that lie within `text`, each with its text, and the rest of `text`.

    A `raw` prompt's `text` has been told as what goes on after `before`.
    """
    pieces = going_on = _pieces(tokenizer, sampled)
    if any(span.kind is SpanKind.CONTENT and span.ids for span in before):
        going_on = _pieces(tokenizer, sampled, before)
    if raw:
        pieces = going_on
    elif _joined(going_on) == " " + _joined(pieces):
        pieces, text = going_on, " " + text
    else:
        before = ()
    kept, done = _inside(pieces, text)
    if done == len(text):
        return pieces[:kept], ""
    # The last token kept may hold the beginning of a character that the rest of the text lacks.
    for fewer in range(min(kept, _RETRIES) + 1):
        said = pieces[: kept - fewer]
        rest = text.removeprefix(_joined(said))
        ids = [*(token for token, _ in said), *_encoded(tokenizer, rest)]
        if _joined(_pieces(tokenizer, ids, before)) == text:
            return said, rest
    return pieces[:kept], text[done:]


def _joined(pieces: Iterable[tuple[int, str]]) -> str:
    return "".join(text for _, text in pieces)


def _encoded(tokenizer: Tokenizer, text: str) -> "Tokens[int]":
    return tokenizer.encode(RenderedSpan(SpanKind.CONTENT, "assistant", text))


def _pieces(
    tokenizer: Tokenizer, ids: Sequence[int], before: Sequence[Span] = ()
) -> list[tuple[int, str]]:
    """Each id with the text that became certain with it, going on after the content `before`."""
    detokenizer = _going_on(tokenizer, before)
    pieces = [(token, detokenizer.add(token)) for token in ids]
    if pieces and (rest := detokenizer.finish()):
        pieces[-1] = (pieces[-1][0], pieces[-1][1] + rest)
    return pieces


def _going_on(tokenizer: Tokenizer, before: Sequence[Span]) -> Detokenizer:
    detokenizer = tokenizer.detokenizer()
    for span in before:
        if span.kind is SpanKind.CONTENT and span.ids:
            detokenizer.add(span.ids[-1])
    return detokenizer


def _inside(pieces: Sequence[tuple[int, str]], text: str) -> tuple[int, int]:
    """How many pieces, the last with some text, make the beginning of `text`; and its length."""
    kept = length = done = 0
    for count, (_, piece) in enumerate(pieces, 1):
        if not text.startswith(piece, done):
            break
        done += len(piece)
        if piece:
            kept, length = count, done
    return kept, length


def _append(spans: list[Span], control: str | None, run: Sequence[tuple[int, str]]) -> None:
    if control is None:
        _extend(spans, _joined(run), tokens(token for token, _ in run))
        return
    for token, piece in run:
        if before := piece.removesuffix(control):  # a broken character before it became certain
            _extend(spans, before, tokens())
        spans.append(Span(SpanKind.CONTROL, "", control, tokens((token,))))


def _extend(spans: list[Span], text: str, ids: "Tokens[int]") -> None:
    """Append to the last span if it is content, which the generation prompt usually is."""
    if spans and spans[-1].kind is SpanKind.CONTENT:
        last = spans[-1]
        spans[-1] = Span(last.kind, "assistant", last.text + text, last.ids + ids)
    else:
        spans.append(Span(SpanKind.CONTENT, "assistant", text, ids))


def miss_of(prompt: Prompt, session: Session) -> Miss:
    """Why `prompt` does not go on from all of `session`."""
    return _miss(prompt, session.spans, prompt.tools_digest != session.tools_digest)


def _miss(prompt: Prompt, known: Sequence[Span], other_tools: bool) -> Miss:
    count = matching_spans(known, prompt.spans)
    if count == len(known):
        return Miss.NONE
    roles = {_next_role(spans[count:]) for spans in (known, prompt.spans)}
    same = common_prefix(prompt.tokens, 0, concatenated(known), 0)
    # A span may hold system prompt and user message; where only one side is system, it is gone.
    of_system = "system" in roles and (len(roles) > 1 or not prompt.shared)
    if same >= prompt.shared and not of_system:
        return Miss.MESSAGES_CHANGED
    return Miss.TOOLS_CHANGED if other_tools else Miss.SYSTEM_CHANGED


def _next_role(spans: Sequence[Span]) -> str:
    return next((span.role for span in spans if span.role), "")


def _leading_system(conversation: Conversation) -> tuple[Message, ...]:
    leading: list[Message] = []
    for message in conversation.messages:
        if message.role not in ("system", "developer"):
            break
        leading.append(message)
    return tuple(leading)


def _texts(spans: Iterable[RenderedSpan]) -> list[tuple[SpanKind, str]]:
    return [(span.kind, span.text) for span in spans]
