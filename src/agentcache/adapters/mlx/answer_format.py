"""How a model marks thoughts and tool calls, as far as mlx-lm knows it."""

import json
from collections.abc import Callable
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from agentcache.domain.answer import AnswerFormat, Called, Tools
from agentcache.domain.tool_prompt import CALLS, parse_calls

Parser = Callable[[str, list[Any]], Any]


def answer_format(found: TokenizerWrapper) -> AnswerFormat:
    """The markers of `found`; calls in JSON between tags where mlx-lm has no parser for a model."""
    thinks = (found.think_start, found.think_end) if found.has_thinking else None
    if not found.has_tool_calling:
        return AnswerFormat(thinks, CALLS, parse_calls)
    calls = (found.tool_call_start, found.tool_call_end)
    return AnswerFormat(thinks, calls, _parsing(found.tool_parser))


def _parsing(parser: Parser) -> Callable[[str, Tools], list[Called]]:
    def parse(text: str, tools: Tools) -> list[Called]:
        try:
            found = parser(text, list(tools))
            calls = found if isinstance(found, list) else [found]
            return [(str(call["name"]), _as_json(call["arguments"])) for call in calls]
        except Exception:  # parsers raise whatever their regular expressions lead to
            return parse_calls(text, tools)

    return parse


def _as_json(arguments: object) -> str:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    if not isinstance(json.loads(text), dict):
        raise ValueError("arguments are a JSON object")
    return text
