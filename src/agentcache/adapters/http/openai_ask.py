"""From a chat completion request to an Ask; what cannot be honoured is refused by name."""

import re
from typing import Final

import msgspec
from starlette.datastructures import Headers

from agentcache.adapters.http.completion_types import CompletionRequest
from agentcache.adapters.http.identity import identify
from agentcache.adapters.http.keeping import kept
from agentcache.adapters.http.neutral import Neutral, refuse_unsupported
from agentcache.adapters.http.openai_types import (
    ChatMessage,
    ChatRequest,
    Part,
    Tool,
    ToolChoice,
)
from agentcache.adapters.http.stops import checked_stops
from agentcache.domain.conversation import Conversation, Message, ToolCall
from agentcache.domain.errors import InvalidRequest
from agentcache.domain.request import Sampling
from agentcache.domain.structure import ANY_OBJECT, CalledTools, JsonAnswer, Structure
from agentcache.service import Ask

# Values that ask for nothing beside what is done anyway; null always does.
NEUTRAL: Final[Neutral] = {
    "n": (1,),
    "modalities": (["text"],),
    "audio": (),
    "moderation": (),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "verbosity": ("medium",),
    "web_search_options": (),
}


def asked(request: ChatRequest, headers: Headers) -> Ask:
    """What the service shall do. Raises InvalidRequest that names the parameter."""
    _refuse_unsupported(request)
    return Ask(
        model=request.model,
        identity=identify(headers, prompt_cache_key=request.prompt_cache_key),
        conversation=_conversation(request),
        sampling=sampled(request, (request.top_logprobs or 0) if request.logprobs else None),
        max_tokens=_max_tokens(request),
        stop=stops(request.stop),
        **kept(request.store, request.prompt_cache_key),
        structure=_structure(request),
        calls=request.tool_choice != "none",
        several=request.parallel_tool_calls is not False,
    )


def _refuse_unsupported(request: ChatRequest) -> None:
    refuse_unsupported(request, NEUTRAL)
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest("top_logprobs are only told with logprobs", "top_logprobs")
    check_stream_options(request)


def check_stream_options(request: ChatRequest | CompletionRequest) -> None:
    """Raise InvalidRequest for options without a stream, and for those that none can have."""
    if request.stream_options is not None:
        if not request.stream:
            raise InvalidRequest("stream_options are only for streams", "stream_options")
        if request.stream_options.include_obfuscation:
            name = "stream_options.include_obfuscation"
            raise InvalidRequest(f"{name} is not supported: leave it out", name)


def _structure(request: ChatRequest) -> Structure | None:
    """What the answer has to be. Calls that are required come before any format."""
    several = request.parallel_tool_calls is not False
    names = _required(request.tool_choice)
    if names is not None:
        return CalledTools(names, several)
    form = request.response_format
    if form is None or form.type == "text":
        return None
    free = request.tool_choice != "none"
    if form.type == "json_object":
        return JsonAnswer(ANY_OBJECT, free)
    if form.json_schema is None or form.json_schema.schema is None:
        raise InvalidRequest("a json_schema needs a schema", "response_format.json_schema.schema")
    return JsonAnswer(form.json_schema.schema, free)


def _required(choice: str | ToolChoice | None) -> tuple[str, ...] | None:
    """The tools of which one has to be called, () for any; None if none has to be."""
    if choice == "required":
        return ()
    if not isinstance(choice, ToolChoice):
        return None
    if choice.type == "function":
        if choice.function is None:
            raise InvalidRequest("a function has a name", "tool_choice.function")
        return (choice.function.name,)
    if choice.allowed_tools is None:
        raise InvalidRequest("the tools that are allowed are missing", "tool_choice.allowed_tools")
    if choice.allowed_tools.mode == "auto":
        return None
    return tuple(tool.function.name for tool in choice.allowed_tools.tools)


def _conversation(request: ChatRequest) -> Conversation:
    if not request.messages:
        raise InvalidRequest("messages must not be empty", "messages")
    for at, tool in enumerate(request.tools or ()):
        try:
            msgspec.convert(tool, Tool)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"not a function tool: {error}", f"tools[{at}]") from None
    messages = (_message(each, f"messages[{at}]") for at, each in enumerate(request.messages))
    return Conversation(tuple(messages), tuple(request.tools or ()), request.reasoning_effort)


def _message(message: ChatMessage, at: str) -> Message:
    for name in ("audio", "function_call"):
        if getattr(message, name) is not None:
            raise InvalidRequest(f"{name} in a message is not supported", f"{at}.{name}")
    if message.role == "tool" and not message.tool_call_id:
        raise InvalidRequest("a tool message needs a tool_call_id", f"{at}.tool_call_id")
    if message.tool_calls and message.role != "assistant":
        raise InvalidRequest("only the assistant calls tools", f"{at}.tool_calls")
    calls = tuple(
        ToolCall(call.id, call.function.name, call.function.arguments)
        for call in message.tool_calls or ()
    )
    role = "system" if message.role == "developer" else message.role
    content, thought = _content(message, at), message.reasoning_content or ""
    return Message(role, content, message.name, calls, message.tool_call_id, thought)


def _content(message: ChatMessage, at: str) -> str:
    """The text as it was written: parts follow one another with nothing between."""
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:
        if message.role != "assistant":
            raise InvalidRequest("content is missing", f"{at}.content")
        return message.refusal or ""
    return "".join(_text(part, f"{at}.content[{n}]") for n, part in enumerate(content))


def _text(part: Part, at: str) -> str:
    if part.type not in {"text", "refusal"}:
        raise InvalidRequest(f"content of type {part.type[:64]!r} is not supported: send text", at)
    text = part.text if part.type == "text" else part.refusal
    if text is None:
        raise InvalidRequest(f"{part.type} is missing", f"{at}.{part.type}")
    return text


def sampled(request: ChatRequest | CompletionRequest, logprobs: int | None) -> Sampling:
    """OpenAI's defaults: temperature 1, top_p 1. A seed of any size is folded to 64 bits."""
    given = {
        name: value
        for name in (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
        )
        if (value := getattr(request, name)) is not None
    }
    return Sampling(
        **given,
        seed=None if request.seed is None else request.seed % 2**64,
        logit_bias=_bias(request.logit_bias or {}),
        logprobs=logprobs,
    )


def _bias(given: dict[str, float]) -> tuple[tuple[int, float], ...]:
    for token in given:
        if re.fullmatch("[0-9]{1,9}", token) is None:
            raise InvalidRequest(f"{token[:64]!r} is no token id", "logit_bias")
    return tuple((int(token), bias) for token, bias in given.items())


def _max_tokens(request: ChatRequest) -> int | None:
    old, new = request.max_tokens, request.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise InvalidRequest("max_tokens contradicts max_completion_tokens", "max_tokens")
    name, limit = ("max_tokens", old) if new is None else ("max_completion_tokens", new)
    if limit is not None and limit < 1:
        raise InvalidRequest(f"{name} must be at least 1", name)
    return limit


def stops(stop: str | list[str] | None) -> tuple[str, ...]:
    """Stop sequences, of which one may stand by itself."""
    return checked_stops((stop,) if isinstance(stop, str) else stop or (), "stop")
