"""What clients send back of answers, and the answers as the model said them.

A client gets an answer as text, thoughts and tool calls, and sends that back with its next request.
Rendered from it, an answer is seldom what the model wrote, token by token; so an answer that is
remembered takes the place of what came back of it, if that is the same.
"""

import json
from collections.abc import Sequence

from agentcache.domain.conversation import Message
from agentcache.domain.registry import SessionRegistry
from agentcache.domain.session import Session


def as_said(
    messages: Sequence[Message],
    registry: SessionRegistry,
    tenant: str,
    roots: Sequence[bytes],
    session: Session | None,
) -> tuple[Message, ...]:
    """`messages` with every answer that is remembered as it was said.

    Answers that called tools are found by the ids of their calls, others at the same place in
    `session`, the one that the request names; those without words only behind the same words.
    """
    known = session.messages if session else ()

    def remembered(at: int, message: Message) -> Message:
        if message.role != "assistant":
            return message
        if message.tool_calls:
            found = registry.caller(tenant, roots, message.tool_calls[0].id)
        else:
            found = known[at] if _is_there(at, message, messages, known) else None
        return found if found is not None and _is_echo(message, found) else message

    return tuple(remembered(at, message) for at, message in enumerate(messages))


def _is_there(
    at: int, message: Message, messages: Sequence[Message], known: Sequence[Message]
) -> bool:
    """Whether `known` has an answer at this place that `message` can be."""
    if at >= len(known) or message.content.strip() or not at:
        return at < len(known)
    return messages[at - 1].content == known[at - 1].content


def spoken(message: Message) -> Message:
    """The message as it is rendered: an answer in the model's own words."""
    return message if message.said is None else Message(message.role, message.said, message.name)


def _is_echo(sent: Message, answer: Message) -> bool:
    """Whether `sent` says and calls what `answer` did; thoughts need not come back."""
    same = sent.content == answer.content or not (sent.content + answer.content).strip()
    return (
        same
        and sent.role == answer.role
        and sent.thought in ("", answer.thought)
        and len(sent.tool_calls) == len(answer.tool_calls)
        and all(
            (one.id, one.name) == (other.id, other.name)
            and _is_same_json(one.arguments, other.arguments)
            for one, other in zip(sent.tool_calls, answer.tool_calls, strict=True)
        )
    )


def _is_same_json(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        return bool(json.loads(one) == json.loads(other))
    except (ValueError, RecursionError):
        return False
