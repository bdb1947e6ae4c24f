"""Tools for models whose chat template does not know of any: told in words, as Hermes models are.

The system prompt lists the tools and says how to call one. Calls and results are then text of the
assistant and of the user.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby

from attrs import evolve

from agentcache.domain.answer import Called, Tools
from agentcache.domain.conversation import Conversation, Json, Message, ToolCall
from agentcache.domain.tools import canonical_tools

CALLS = ("<tool_call>", "</tool_call>")
_RESULTS = ("<tool_response>", "</tool_response>")
_TOLD = """\
You can call functions. These are all there are, one JSON object a line:
{tools}
To call one, answer with its name and arguments, a JSON object within tags:
{begin}{{"name": "...", "arguments": {{...}}}}{end}"""


def tools_in_words(conversation: Conversation) -> Conversation:
    """The conversation with its tools in the system prompt."""
    if not conversation.tools:
        return conversation
    lines = "\n".join(_dumped(tool) for tool in canonical_tools(conversation.tools))
    told = _TOLD.format(tools=lines, begin=CALLS[0], end=CALLS[1])
    messages = conversation.messages
    if messages and messages[0].role in ("system", "developer"):
        first, messages = messages[0], messages[1:]
        told = f"{first.content}\n\n{told}" if first.content else told
    return evolve(conversation, messages=(Message("system", told), *messages), tools=())


def calls_in_words(conversation: Conversation) -> Conversation:
    """The conversation with its calls and results as text that is said."""
    return evolve(conversation, messages=tuple(_in_words(conversation.messages)))


def parse_calls(text: str, _tools: Tools) -> list[Called]:
    """The call in `text`: a JSON object, or a list of them. Raises ValueError for anything else."""
    found = json.loads(text)
    return [_called(call) for call in (found if isinstance(found, list) else [found])]


def written(call: ToolCall) -> str:
    """A call as the model is asked to write it."""
    try:
        arguments = _dumped(json.loads(call.arguments))
    except (ValueError, RecursionError):
        arguments = call.arguments
    name = _dumped(call.name)
    return f'{CALLS[0]}{{"name": {name}, "arguments": {arguments}}}{CALLS[1]}'


def _called(call: object) -> Called:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise ValueError("a call has a name")
    arguments = call.get("arguments", call.get("parameters", {}))
    text = arguments if isinstance(arguments, str) else _dumped(arguments)
    if not isinstance(json.loads(text), dict):
        raise ValueError("arguments are a JSON object")
    return call["name"], text


def _in_words(messages: Sequence[Message]) -> Iterator[Message]:
    """Results that follow one another are one message of the user: roles have to take turns."""
    for role, run in groupby(messages, lambda message: message.role):
        if role == "tool":
            yield Message("user", "\n".join(_result(message) for message in run))
        else:
            yield from map(_with_calls, run)


def _result(message: Message) -> str:
    return f"{_RESULTS[0]}{message.content}{_RESULTS[1]}"


def _with_calls(message: Message) -> Message:
    if message.tool_calls:
        calls = "\n".join(map(written, message.tool_calls))
        content = f"{message.content}\n{calls}" if message.content else calls
        return evolve(message, content=content, tool_calls=())
    return message


def _dumped(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
