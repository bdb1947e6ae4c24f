"""Volatile text in system prompts: what some clients change on every request, made stable.

One changed token at the top of a prompt makes all that follows unusable. A rule rewrites system
messages before they are rendered, to something that stays true and stays the same: see
docs/decisions/0005. Every other role's words are left alone.
"""

import re
from collections.abc import Iterable

from attrs import evolve, field, frozen

from agentcache.domain.conversation import Conversation


def _by_line(pattern: str) -> "re.Pattern[str]":
    return re.compile(pattern, re.MULTILINE | re.IGNORECASE)


@frozen
class VolatileRule:
    """Replace `pattern` (a regular expression over lines) by `stable`, a template for re.sub."""

    name: str
    pattern: "re.Pattern[str]" = field(converter=_by_line)
    stable: str = ""


_TIME = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?(?:[ ]?[ap]\.?m\b\.?)?"
_ZONE = r"(?:[ ]?(?:Z\b|[+-]\d{2}:?\d{2}\b|\(?\b(?-i:[A-Z]{2,5})\b(?:[+-]\d{1,2}\b)?\)?))?"
_DATE = r"(?:\d{4}-\d{2}-\d{2}|(?:[a-z]+day,?[ ])?[a-z]{3,9}[ ]\d{1,2},?[ ]\d{4})"
_LABEL = (
    r"[^\w\n]{0,8}(?:the[ ])?(?:current[ ])?(?:local[ ])?"
    r"(?:date(?:[ ]and[ ]|/|[ ]))?(?:time|timestamp)\b"
)
_COUNT = r"\d[\d,_.]*(?:[ ]?(?:/|of)[ ]?\d[\d,_.]*)?"

RULES = (
    # Claude Code's first block: "x-anthropic-billing-header: cc_version=...; cch=543cf;". It tells
    # the model nothing, and `cch` differs in every request.
    VolatileRule("billing-header", r"^x-anthropic-billing-header:[^\n]*\n*"),
    # "Current date and time: Monday, March 9, 2026 at 06:00:31 PM PDT": the day stays.
    VolatileRule(
        "time-of-day",
        rf"^({_LABEL}[^\d\n]{{0,20}}?\n?{_DATE})(?:T|,?[ ](?:at[ ])?){_TIME}{_ZONE}",
        r"\1",
    ),
    # "Current time is 15:09:20.": nothing of it is true a minute later.
    VolatileRule("clock", rf"^{_LABEL}[ ]?(?:is|:)[ ]{_TIME}{_ZONE}(?:\.[ ]?|$)\n?"),
    # "Tokens left: 198,766" and "198766 tokens remaining", where they are the whole line.
    VolatileRule(
        "tokens-left",
        rf"^[^\w\n]{{0,8}}(?:(?:remaining[ ]tokens|tokens[ ](?:left|remaining))[ ]?:?[ ]?{_COUNT}"
        rf"|{_COUNT}[ ]tokens[ ](?:left|remaining))[^\w\n]{{0,8}}(?:\n|\Z)",
    ),
)


def settled(conversation: Conversation, rules: Iterable[VolatileRule] = RULES) -> Conversation:
    """The conversation with `rules` applied to its system messages; itself if none applies."""
    rules = tuple(rules)
    messages = tuple(
        evolve(message, content=_applied(message.content, rules))
        if message.role in ("system", "developer")
        else message
        for message in conversation.messages
    )
    return (
        conversation
        if messages == conversation.messages
        else evolve(conversation, messages=messages)
    )


def _applied(text: str, rules: Iterable[VolatileRule]) -> str:
    for rule in rules:
        text = rule.pattern.sub(rule.stable, text)
    return text
