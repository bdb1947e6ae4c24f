"""Chat completions as OpenAI clients write and read them.

Request fields are those of the openai SDK's `CompletionCreateParams`; others are passed over.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

JsonObject = dict[str, Any]  # msgspec knows no recursive types; it makes nothing but JSON of Any
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
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: _Name | None = None
    safety_identifier: str | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    # What follows is known, and refused unless it asks for nothing (openai_ask.NEUTRAL).
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, float] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    response_format: JsonObject | None = None
    modalities: list[str] | None = None
    audio: JsonObject | None = None
    prediction: JsonObject | None = None
    moderation: JsonObject | None = None
    functions: list[JsonObject] | None = None
    function_call: str | JsonObject | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    service_tier: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: JsonObject | None = None
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


FinishReason = Literal["stop", "length"]


class AnswerMessage(Struct, frozen=True):
    """What the model said."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class Choice(Struct, frozen=True):
    """The one answer there is."""

    message: AnswerMessage
    finish_reason: FinishReason
    index: int = 0
    logprobs: None = None


class ChatCompletion(Struct, frozen=True):
    """A whole answer."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: tuple[Choice, ...]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"


class DeltaMessage(Struct, frozen=True, omit_defaults=True):
    """What came since the last chunk."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(Struct, frozen=True):
    """The one answer there is, continued."""

    delta: DeltaMessage
    finish_reason: FinishReason | None = None
    index: int = 0
    logprobs: None = None


class ChatChunk(Struct, frozen=True):
    """One event of a stream. `usage` is there only if it was asked for, null until the end."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: tuple[ChunkChoice, ...]
    usage: Usage | UnsetType | None = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
