"""Whose words a rendered span carries, found by walking the messages in order."""

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

from attrs import define, field

from agentcache.domain.conversation import Conversation, Message
from agentcache.domain.spans import RenderedSpan, SpanKind
from agentcache.domain.spellings import Spellings

_LOOKAHEAD = 64  # pieces that a template may have left out in a row
_HEADERS = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
    "ipython": "tool",
    "observation": "tool",
}

# Whose words may follow a header; some templates have no turns for the system or for tools.
_IN_TURN_OF = {
    "system": {"system"},
    "user": {"user", "tool", "system"},
    "assistant": {"assistant"},
    "tool": {"tool"},
}


def role_of(message: Message) -> str:
    """The role as templates know it: developer is read as system."""
    return "system" if message.role == "developer" else message.role


def labelled(
    pieces: Sequence[tuple[SpanKind, str]],
    conversation: Conversation,
    spellings: Spellings,
    generation_prompt: bool,
) -> tuple[RenderedSpan, ...]:
    """The pieces as spans. Control and what only separates has no role.

    A content span is the assistant's if it holds an answer of his, else of the role whose message
    is found in it first, else of the one under whose header it stands. So is template text that
    says something. The generation prompt is the assistant's.
    """
    walk = _Walk(tuple(_said(conversation, spellings)))
    spans = [
        RenderedSpan(kind, walk.role(text) if kind is SpanKind.CONTENT else "", text)
        for kind, text in pieces
    ]
    if generation_prompt and spans and walk.idle and spans[-1].kind is SpanKind.CONTENT:
        spans[-1] = RenderedSpan(SpanKind.CONTENT, "assistant", spans[-1].text)
    return tuple(spans)


@define(eq=False)
class _Walk:
    """What was said, as (role, text), and how far it was found. `idle`: not in the last text."""

    said: Sequence[tuple[str, str]]
    idle: bool = False
    _next: int = field(default=0, init=False)
    _header: str = field(default="", init=False)
    _last: str = field(default="system", init=False)

    def role(self, text: str) -> str:
        named = _HEADERS.get(text.lstrip().partition("\n")[0].strip(), "")
        self._header = named or self._header
        self.idle = True
        if not text.strip() or text.strip() in _HEADERS:
            return ""
        found = list(self._found(text))
        self.idle = not found
        said = "assistant" if "assistant" in found else next(iter(found), self._header)
        self._last = said or self._last
        return self._last

    def _found(self, text: str) -> Iterator[str]:
        """The roles of all that is found in `text`, in order."""
        roles, at = _IN_TURN_OF.get(self._header), 0
        while (step := self._find(text, at, roles)) is not None:
            index, at = step
            self._next = index + 1
            yield self.said[index][0]

    def _find(self, text: str, at: int, roles: Container[str] | None) -> tuple[int, int] | None:
        """The next thing said by `roles` that is in `text` after `at`, and where it ends there."""
        for index in range(self._next, min(self._next + _LOOKAHEAD, len(self.said))):
            role, said = self.said[index]
            if (roles is None or role in roles) and (start := text.find(said, at)) >= 0:
                return index, start + len(said)
        return None


def _said(conversation: Conversation, spellings: Spellings) -> Iterator[tuple[str, str]]:
    """Everything said, in the pieces in which it can be found again."""
    first = 1 if conversation.messages and role_of(conversation.messages[0]) == "system" else 0
    yield from _spoken("system", conversation.messages[:first], spellings)
    yield from (("system", name) for name in _first_tool(conversation))
    for message in conversation.messages[first:]:
        yield from _spoken(role_of(message), (message,), spellings)


def _spoken(
    role: str, messages: Iterable[Message], spellings: Spellings
) -> Iterator[tuple[str, str]]:
    for message in messages:
        pieces: Iterable[tuple[SpanKind, str]] = ((SpanKind.CONTENT, message.content),)
        if role == "assistant":
            pieces = spellings.split(message.content)
        for kind, text in pieces:
            if kind is SpanKind.CONTENT and text.strip():
                yield role, text.strip()
        yield from ((role, call.name) for call in message.tool_calls)


def _first_tool(conversation: Conversation) -> Iterator[str]:
    """As every template that writes tools at all writes them in order, one name is enough."""
    for tool in conversation.tools[:1]:
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(name, str) and name:
            yield json.dumps(name, ensure_ascii=False)
