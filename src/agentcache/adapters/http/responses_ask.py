"""From a responses request to an Ask; what cannot be honoured is refused by name."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from starlette.datastructures import Headers

from agentcache.adapters.http.identity import identify
from agentcache.adapters.http.keeping import kept
from agentcache.adapters.http.neutral import Neutral, refuse_unsupported
from agentcache.adapters.http.responses_note import asked_of, noted
from agentcache.adapters.http.responses_types import (
    InputItem,
    InputPart,
    InputTool,
    ResponsesRequest,
    ToolChoice,
)
from agentcache.domain.conversation import Conversation, Json, Message, ToolCall
from agentcache.domain.errors import InvalidRequest
from agentcache.domain.request import Sampling
from agentcache.domain.structure import ANY_OBJECT, CalledTools, JsonAnswer, Structure
from agentcache.service import Ask

INSTRUCTIONS = "developer"  # the role of what `instructions` say; input items say it as "system"
LOGPROBS = "message.output_text.logprobs"
# Values that ask for nothing beside what is done anyway; null always does.
NEUTRAL: Final[Neutral] = {
    "background": (False,),
    "conversation": (),
    "prompt": (),
    "max_tool_calls": (),
    "truncation": ("disabled",),
}


def asked(request: ResponsesRequest, before: Sequence[Message], headers: Headers) -> Ask:
    """What the service shall do, after the messages of the response that came `before`."""
    refuse_unsupported(request, NEUTRAL)
    return Ask(
        model=request.model,
        identity=identify(headers, prompt_cache_key=request.prompt_cache_key),
        conversation=_conversation(request, before),
        sampling=_sampling(request),
        max_tokens=request.max_output_tokens,
        **kept(request.store, request.prompt_cache_key),
        structure=_structure(request),
        calls=request.tool_choice != "none",
        several=request.parallel_tool_calls is not False,
        note=None if request.store is False else noted(asked_of(request)),
    )


def _conversation(request: ResponsesRequest, before: Sequence[Message]) -> Conversation:
    """Instructions are those of this request alone: earlier ones are not carried over."""
    messages = [Message(INSTRUCTIONS, request.instructions)] if request.instructions else []
    messages += [message for message in before if message.role != INSTRUCTIONS]
    if isinstance(request.input, str):
        messages.append(Message("user", request.input))
    else:
        messages += _messages(request.input or ())
    if not messages:
        raise InvalidRequest("input must not be empty", "input")
    effort = request.reasoning.effort if request.reasoning else None
    return Conversation(tuple(messages), _tools(request.tools or ()), effort)


def _messages(items: Sequence[InputItem]) -> Iterator[Message]:
    """An answer's thoughts, words and calls are items of their own, and one message."""
    placed = [(item, f"input[{at}]") for at, item in enumerate(items)]
    for ours, run in groupby(placed, lambda one: _is_answer(one[0])):
        if ours:
            yield _answer(list(run))
        else:
            yield from (_message(item, place) for item, place in run)


def _is_answer(item: InputItem) -> bool:
    said = item.type == "message" and item.role == "assistant"
    return said or item.type in {"function_call", "reasoning"}


def _answer(items: Sequence[tuple[InputItem, str]]) -> Message:
    text, thought, calls = "", "", list[ToolCall]()
    for item, place in items:
        if item.type == "function_call":
            if not item.call_id or not item.name or item.arguments is None:
                raise InvalidRequest("a call has a call_id, a name and arguments", place)
            calls.append(ToolCall(item.call_id, item.name, item.arguments))
        elif item.type == "reasoning":
            thought += _text(item.content or "", f"{place}.content")
        else:
            text += _text(item.content or "", f"{place}.content")
    return Message("assistant", text, tool_calls=tuple(calls), thought=thought)


def _message(item: InputItem, place: str) -> Message:
    if item.type == "function_call_output":
        if not item.call_id or item.output is None:
            raise InvalidRequest("the output of a call has a call_id and an output", place)
        return Message("tool", _text(item.output, f"{place}.output"), tool_call_id=item.call_id)
    if item.type != "message":
        problem = f"items of type {item.type[:64]!r} are not supported"
        raise InvalidRequest(problem, f"{place}.type")
    if item.role is None or item.content is None:
        raise InvalidRequest("a message has a role and content", place)
    role = "system" if item.role == "developer" else item.role
    return Message(role, _text(item.content, f"{place}.content"))


def _text(content: str | list[InputPart], place: str) -> str:
    if isinstance(content, str):
        return content
    return "".join(_part(part, f"{place}[{at}]") for at, part in enumerate(content))


def _part(part: InputPart, place: str) -> str:
    if part.type == "refusal" and part.refusal is not None:
        return part.refusal
    if part.type not in {"input_text", "output_text", "reasoning_text", "text"}:
        problem = f"content of type {part.type[:64]!r} is not supported: send text"
        raise InvalidRequest(problem, place)
    if part.text is None:
        raise InvalidRequest("text is missing", f"{place}.text")
    return part.text


def _tools(tools: Sequence[InputTool]) -> tuple[dict[str, Json], ...]:
    """Functions alone: what only a server could run is not shown to the model."""
    found: list[dict[str, Json]] = []
    for at, tool in enumerate(tools):
        if tool.type != "function":
            continue
        if not tool.name:
            raise InvalidRequest("a function has a name", f"tools[{at}].name")
        function: dict[str, Json] = {"name": tool.name}
        if tool.description:
            function["description"] = tool.description
        found.append(
            {
                "type": "function",
                "function": {**function, "parameters": tool.parameters or ANY_OBJECT},
            }
        )
    return tuple(found)


def _structure(request: ResponsesRequest) -> Structure | None:
    names = _required(request.tool_choice)
    if names is not None:
        return CalledTools(names, request.parallel_tool_calls is not False)
    form = request.text.format if request.text else None
    if form is None or form.type == "text":
        return None
    free = request.tool_choice != "none"
    if form.type == "json_object":
        return JsonAnswer(ANY_OBJECT, free)
    if form.schema is None:
        raise InvalidRequest("a json_schema needs a schema", "text.format.schema")
    return JsonAnswer(form.schema, free)


def _required(choice: str | ToolChoice | None) -> tuple[str, ...] | None:
    """The tools of which one has to be called, () for any; None if none has to be."""
    if choice == "required":
        return ()
    if not isinstance(choice, ToolChoice):
        return None
    if choice.type == "function" and choice.name:
        return (choice.name,)
    if choice.type == "allowed_tools" and choice.mode is not None:
        if choice.mode == "auto":
            return None
        return tuple(tool.name for tool in choice.tools or () if tool.name)
    problem = "choose a function by its name, or allowed_tools with a mode"
    raise InvalidRequest(problem, "tool_choice")


def _sampling(request: ResponsesRequest) -> Sampling:
    given = {
        name: value
        for name in ("temperature", "top_p")
        if (value := getattr(request, name)) is not None
    }
    told = LOGPROBS in (request.include or ()) or request.top_logprobs
    return Sampling(**given, logprobs=(request.top_logprobs or 0) if told else None)
