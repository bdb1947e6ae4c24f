"""Chat completions as OpenAI clients write and read them.

Request fields are those of the openai SDK's `CompletionCreateParams`; others are passed over.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from agentcache.adapters.http.likely import SaidToken
from agentcache.domain.logprobs import MOST_LOGPROBS

JsonObject = dict[str, Any]  # msgspec knows no recursive types; it makes nothing but JSON of Any
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_Name = Annotated[str, Meta(max_length=256)]


class Part(Struct, frozen=True):
    """A piece of a message's content; only text can be read."""

    type: str
    text: str | None = None
    refusal: str | None = None


class CalledFunction(Struct, frozen=True):
    """The function of a past tool call; `arguments` is JSON text."""

    name: str
    arguments: str


class PastToolCall(Struct, frozen=True):
    """A tool call that the model made in an earlier turn."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class ChatMessage(Struct, frozen=True):
    """One message of the conversation."""

    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    reasoning_content: str | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[PastToolCall] | None = None
    tool_call_id: str | None = None
    audio: JsonObject | None = None
    function_call: JsonObject | None = None


class ToolFunction(Struct, frozen=True):
    """What of a function tool is checked; the tool is rendered as it was sent."""

    name: str


class Tool(Struct, frozen=True):
    """A tool that the model may call."""

    type: Literal["function"]
    function: ToolFunction


class NamedFunction(Struct, frozen=True):
    """A function by its name."""

    name: str


class ToolReference(Struct, frozen=True):
    """A tool by its name."""

    function: NamedFunction
    type: Literal["function"] = "function"


class AllowedTools(Struct, frozen=True):
    """Some of the tools, which may or have to be called."""

    mode: Literal["auto", "required"]
    tools: list[ToolReference]


class ToolChoice(Struct, frozen=True):
    """Which tools are to be called: a named one, or one of several."""

    type: Literal["function", "allowed_tools"]
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None


class JsonSchema(Struct, frozen=True):
    """What a structured answer is; `strict` or not, it is kept to."""

    schema: JsonObject | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct, frozen=True):
    """What an answer shall be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Struct, frozen=True):
    """What else a stream shall carry."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatRequest(Struct, frozen=True):
    """POST /v1/chat/completions. `top_k` and `min_p` are common extensions."""

    model: _Name
    messages: list[ChatMessage]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    store: bool | None = None
    tools: list[JsonObject] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MOST_LOGPROBS)] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    reasoning_effort: Effort | None = None
    service_tier: str | None = None
    prediction: JsonObject | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: JsonObject | None = None
    prompt_cache_key: _Name | None = None
    safety_identifier: str | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    # What follows is known, and refused unless it asks for nothing (openai_ask.NEUTRAL).
    n: int | None = None
    modalities: list[str] | None = None
    audio: JsonObject | None = None
    moderation: JsonObject | None = None
    functions: list[JsonObject] | None = None
    function_call: str | JsonObject | None = None
    verbosity: str | None = None
    web_search_options: JsonObject | None = None


class PromptDetails(Struct, frozen=True):
    """How much of the prompt was not computed again."""

    cached_tokens: int


class Usage(Struct, frozen=True):
    """Tokens of a turn; `prompt_tokens` includes the cached ones."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


FinishReason = Literal["stop", "length", "tool_calls"]


class AnsweredCall(Struct, frozen=True):
    """A tool that the model calls."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class AnswerMessage(Struct, frozen=True):
    """What the model said; fields that only some answers have are left out of others."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: tuple[AnsweredCall, ...] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET


class ChoiceLogprobs(Struct, frozen=True):
    """How likely the tokens of an answer were."""

    content: tuple[SaidToken, ...]
    refusal: None = None


class Choice(Struct, frozen=True):
    """The one answer there is."""

    message: AnswerMessage
    finish_reason: FinishReason
    index: int = 0
    logprobs: ChoiceLogprobs | None = None


class ChatCompletion(Struct, frozen=True):
    """A whole answer."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: tuple[Choice, ...]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"


class DeltaCall(Struct, frozen=True):
    """A tool that the model calls, or more of its arguments."""

    index: int
    function: CalledFunction
    id: str
    type: Literal["function"] = "function"


class DeltaMessage(Struct, frozen=True, omit_defaults=True):
    """What came since the last chunk."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: tuple[DeltaCall, ...] = ()
    reasoning_content: str | None = None


class ChunkChoice(Struct, frozen=True):
    """The one answer there is, continued."""

    delta: DeltaMessage
    finish_reason: FinishReason | None = None
    index: int = 0
    logprobs: ChoiceLogprobs | None = None


class ChatChunk(Struct, frozen=True):
    """One event of a stream. `usage` is there only if it was asked for, null until the end."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: tuple[ChunkChoice, ...]
    usage: Usage | UnsetType | None = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
