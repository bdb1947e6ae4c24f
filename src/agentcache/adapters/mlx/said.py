"""What was said, as the fields a chat template reads, with every control spelling hidden."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from attrs import frozen

from agentcache.adapters.mlx.chat_template import Fields
from agentcache.adapters.mlx.roles import role_of
from agentcache.domain.conversation import Conversation, Json, Message, ToolCall, encodable
from agentcache.domain.errors import InvalidRequest
from agentcache.domain.spellings import Spellings, unused_mark
from agentcache.domain.tools import canonical, canonical_tools

ROLES = ("system", "user", "assistant", "tool")
Arguments = Literal["text", "mapping"]
# What templates look up in tools and compare with: these must reach them as they are.
_SCHEMA_KEYS = frozenset({
    "type", "function", "name", "description", "parameters", "properties", "required", "items",
    "enum", "arguments", "strict", "anyOf", "oneOf", "allOf", "not", "const", "default", "format",
    "title", "examples", "additionalProperties", "minimum", "maximum", "minLength", "maxLength",
    "minItems", "maxItems", "uniqueItems", "pattern", "nullable", "$ref", "$defs", "return",
})  # fmt: skip


@frozen
class Said:
    """The fields of one conversation; `mark` is in every hidden spelling."""

    mark: str
    messages: tuple[Fields, ...]
    tools: tuple[Fields, ...]


def said(conversation: Conversation, spellings: Spellings, arguments: Arguments) -> Said:
    """Hide what could steer. `arguments` of tool calls are given as the text it is, or parsed.

    Raises InvalidRequest for a role that no template knows, and for text that is no Unicode.
    """
    if not conversation.messages:
        raise InvalidRequest("there must be at least one message", "messages")
    tools = canonical_tools(conversation.tools)
    mark = unused_mark(_checked(conversation, tools))
    return Said(
        mark=mark,
        messages=tuple(
            _message(message, spellings, mark, arguments) for message in conversation.messages
        ),
        tools=tuple(_hidden(tool, spellings, mark) for tool in tools),
    )


def _message(message: Message, spellings: Spellings, mark: str, arguments: Arguments) -> Fields:
    role = role_of(message)

    def hide(text: str) -> str:
        return spellings.hidden(text, mark)

    content = spellings.hidden(message.content, mark, speaks=role == "assistant")
    fields: dict[str, Any] = {"role": role, "content": content}
    if message.name is not None:
        fields["name"] = hide(message.name)
    if message.tool_call_id is not None:
        fields["tool_call_id"] = hide(message.tool_call_id)
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                "id": hide(call.id),
                "type": "function",
                "function": {
                    "name": hide(call.name),
                    "arguments": _hidden(_given(call, arguments), spellings, mark),
                },
            }
            for call in message.tool_calls
        ]
    return fields


def _given(call: ToolCall, arguments: Arguments) -> Json:
    return _parsed(call.arguments) if arguments == "mapping" else call.arguments


def _parsed(arguments: str) -> Json:
    """A JSON object in the order its author wrote it; any other text as it is."""
    try:
        value: Json = json.loads(arguments)
        canonical(value)  # refuses what is nested too deep to walk
        json.dumps(value, ensure_ascii=False).encode()  # and this, escaped lone surrogates
    except (ValueError, RecursionError, InvalidRequest):
        return arguments
    return value if isinstance(value, dict) else arguments


def _hidden(value: Json, spellings: Spellings, mark: str, name: bool = False) -> Any:
    if isinstance(value, str):
        return spellings.hidden(value, mark, compared=not name)
    if isinstance(value, Mapping):
        return {
            spellings.hidden(key, mark, compared=key in _SCHEMA_KEYS): _hidden(
                one, spellings, mark, key == "name"
            )
            for key, one in value.items()
        }
    if isinstance(value, Sequence):
        return [_hidden(one, spellings, mark) for one in value]
    return value


def _checked(conversation: Conversation, tools: Sequence[Json]) -> Iterator[str]:
    for number, message in enumerate(conversation.messages):
        if role_of(message) not in ROLES:
            problem = f"messages[{number}] has the unknown role {message.role!r}"
            raise InvalidRequest(problem, f"messages[{number}].role")
        for text in _texts(message):
            yield encodable(text, f"messages[{number}]")
    for number, tool in enumerate(tools):
        yield encodable(json.dumps(tool, ensure_ascii=False), f"tools[{number}]")


def _texts(message: Message) -> Iterator[str]:
    yield message.content
    yield message.name or ""
    yield message.tool_call_id or ""
    for call in message.tool_calls:
        yield from (call.id, call.name, call.arguments)
