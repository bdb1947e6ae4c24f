"""From a messages request to an Ask; what cannot be honoured is refused by name."""

from collections.abc import Iterator, Sequence

import msgspec
from starlette.datastructures import Headers

from agentcache.adapters.http.anthropic_types import (
    Block,
    CountRequest,
    InputMessage,
    InputTool,
    MessagesRequest,
)
from agentcache.adapters.http.identity import identify
from agentcache.adapters.http.stops import checked_stops
from agentcache.domain.conversation import Conversation, Json, Message, ToolCall
from agentcache.domain.errors import InvalidRequest
from agentcache.domain.request import Sampling
from agentcache.domain.structure import CalledTools, JsonAnswer, Structure
from agentcache.service import Ask

_SERVED = frozenset({"server_tool_use", "web_search_tool_result"})  # of tools that nobody runs here


def asked(request: MessagesRequest, headers: Headers) -> Ask:
    """What the service shall do. Raises InvalidRequest that names the parameter."""
    choice = request.tool_choice
    conversation = conversation_of(request)
    user = request.metadata.user_id if request.metadata else None
    return Ask(
        model=request.model,
        identity=identify(headers, **{"metadata.user_id": user}),
        conversation=conversation,
        sampling=_sampling(request),
        max_tokens=request.max_tokens,
        stop=checked_stops(request.stop_sequences or (), "stop_sequences"),
        structure=_structure(request),
        calls=choice is None or choice.type != "none",
        several=choice is None or not choice.disable_parallel_tool_use,
        calls_begin="toolu_",
    )


def conversation_of(request: CountRequest) -> Conversation:
    """The conversation of a request. Raises InvalidRequest that names what cannot be read."""
    if not request.messages:
        raise InvalidRequest("messages must not be empty", "messages")
    if request.messages[-1].role == "assistant":
        problem = "an answer cannot be begun for the model: let the last message be the user's"
        raise InvalidRequest(problem, f"messages[{len(request.messages) - 1}]")
    messages = [*_system(request.system)]
    for number, message in enumerate(request.messages):
        messages += _messages(message, f"messages[{number}]")
    return Conversation(tuple(messages), _tools(request.tools or ()), _effort(request))


def tells_thoughts(request: MessagesRequest) -> bool:
    """Whether thoughts are part of the answer."""
    thinking = request.thinking
    return thinking is None or (thinking.type != "disabled" and thinking.display != "omitted")


def _effort(request: CountRequest) -> str | None:
    if request.thinking is not None and request.thinking.type == "disabled":
        return "none"
    if request.output_config is not None and request.output_config.effort is not None:
        return request.output_config.effort
    return "medium" if request.thinking is not None else None


def _structure(request: MessagesRequest) -> Structure | None:
    choice = request.tool_choice
    several = choice is None or not choice.disable_parallel_tool_use
    if choice is not None and choice.type == "any":
        return CalledTools((), several)
    if choice is not None and choice.type == "tool":
        if choice.name is None:
            raise InvalidRequest("a tool has a name", "tool_choice.name")
        return CalledTools((choice.name,), several)
    if request.output_config is not None and request.output_config.format is not None:
        calls = choice is None or choice.type != "none"
        return JsonAnswer(request.output_config.format.schema, calls)
    return None


def _sampling(request: MessagesRequest) -> Sampling:
    given = {
        name: value
        for name in ("temperature", "top_p", "top_k")
        if (value := getattr(request, name)) is not None
    }
    return Sampling(**given)


def _tools(tools: Sequence[InputTool]) -> tuple[dict[str, Json], ...]:
    """The tools that a client runs; what only a server could run is not shown to the model."""
    found: list[dict[str, Json]] = []
    for number, tool in enumerate(tools):
        if tool.input_schema is None:
            if tool.type in (None, "custom"):
                raise InvalidRequest("a tool has an input_schema", f"tools[{number}].input_schema")
            continue
        if not tool.name:
            raise InvalidRequest("a tool has a name", f"tools[{number}].name")
        function: dict[str, Json] = {"name": tool.name}
        if tool.description:
            function["description"] = tool.description
        found.append(
            {
                "type": "function",
                "function": {**function, "parameters": tool.input_schema},
            }
        )
    return tuple(found)


def _system(system: str | list[Block] | None) -> Iterator[Message]:
    """Blocks are paragraphs of one prompt: few templates take several."""
    if isinstance(system, str):
        text = system
    else:
        texts = (_text(block, f"system[{n}]") for n, block in enumerate(system or ()))
        text = "\n\n".join(texts)
    if text:
        yield Message("system", text)


def _messages(message: InputMessage, at: str) -> Iterator[Message]:
    """A message is several where it brings the results of tools."""
    if isinstance(message.content, str):
        yield Message(message.role, message.content)
        return
    blocks = [(block, f"{at}.content[{n}]") for n, block in enumerate(message.content)]
    if message.role == "assistant":
        yield _answer(blocks)
        return
    texts = []
    for block, place in blocks:
        if block.type == "tool_result" and message.role == "user":
            yield _result(block, place)
        else:
            texts.append(_text(block, place))
    if texts:
        yield Message(message.role, "\n\n".join(texts))


def _answer(blocks: Sequence[tuple[Block, str]]) -> Message:
    text, thought, calls = "", "", list[ToolCall]()
    for block, place in blocks:
        if block.type == "tool_use":
            calls.append(_call(block, place))
        elif block.type == "thinking":
            thought += block.thinking or ""
        elif block.type != "redacted_thinking" and block.type not in _SERVED:
            text += _text(block, place)
    return Message("assistant", text, tool_calls=tuple(calls), thought=thought)


def _call(block: Block, place: str) -> ToolCall:
    if not block.id or not block.name or block.input is None:
        raise InvalidRequest("a tool_use has an id, a name and an input", place)
    return ToolCall(block.id, block.name, msgspec.json.encode(block.input).decode())


def _result(block: Block, place: str) -> Message:
    if not block.tool_use_id:
        raise InvalidRequest("a tool_result has a tool_use_id", f"{place}.tool_use_id")
    if isinstance(block.content, str):
        text = block.content
    else:
        parts = enumerate(block.content or ())
        text = "\n".join(_text(part, f"{place}.content[{n}]") for n, part in parts)
    if block.is_error:
        text = f"Error: {text}"
    return Message("tool", text, tool_call_id=block.tool_use_id)


def _text(block: Block, place: str) -> str:
    if block.type == "text" and block.text is not None:
        return block.text
    source = block.source
    if block.type == "document" and source is not None and source.type == "text" and source.data:
        return source.data
    raise InvalidRequest(f"content of type {block.type[:64]!r} is not supported: send text", place)
