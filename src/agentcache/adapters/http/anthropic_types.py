"""Messages as Anthropic clients write and read them.

Request fields are those of the anthropic SDK's `MessageCreateParams`; others, such as those of
betas, are passed over: they ask for what a local model does not have.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

JsonObject = dict[str, Any]  # msgspec knows no recursive types; it makes nothing but JSON of Any
_Name = Annotated[str, Meta(max_length=256)]


class Source(Struct, frozen=True):
    """Where the content of a document is; only text can be read."""

    type: str
    data: str | None = None


class Block(Struct, frozen=True):
    """A piece of a message's content; which fields it has depends on its type."""

    type: str
    text: str | None = None
    thinking: str | None = None
    source: Source | None = None
    id: str | None = None
    name: str | None = None
    input: JsonObject | None = None
    tool_use_id: str | None = None
    content: "str | list[Block] | None" = None
    is_error: bool | None = None


class InputMessage(Struct, frozen=True):
    """One message of the conversation; a system message may stand anywhere."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class InputTool(Struct, frozen=True):
    """A tool; one without a schema is run by the server, and there is none that does."""

    name: str | None = None
    description: str | None = None
    input_schema: JsonObject | None = None
    type: str | None = None


class ToolChoice(Struct, frozen=True):
    """Which tools are to be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct, frozen=True):
    """Whether to think first; with `display` omitted, thoughts are not told."""

    type: str
    budget_tokens: int | None = None
    display: str | None = None


class OutputFormat(Struct, frozen=True):
    """What an answer shall be."""

    type: Literal["json_schema"]
    schema: JsonObject


class OutputConfig(Struct, frozen=True):
    """How much effort to make, and what an answer shall be."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Metadata(Struct, frozen=True):
    """Who asks."""

    user_id: _Name | None = None


class DiagnosticsWanted(Struct, frozen=True):
    """Whether to be told why less was reused than the last request had."""

    previous_message_id: str | None = None


class CountRequest(Struct, frozen=True):
    """POST /v1/messages/count_tokens."""

    model: _Name
    messages: list[InputMessage]
    system: str | list[Block] | None = None
    tools: list[InputTool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountRequest, frozen=True, kw_only=True):
    """POST /v1/messages. With `max_tokens` 0 the prompt is computed and kept."""

    max_tokens: Annotated[int, Meta(ge=0)]
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    metadata: Metadata | None = None
    diagnostics: DiagnosticsWanted | None = None


class Usage(Struct, frozen=True):
    """Tokens of a turn: the three of the prompt add up to it."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0


class TextBlock(Struct, frozen=True, tag="text"):
    """What was said."""

    text: str
    citations: None = None


class ThinkingBlock(Struct, frozen=True, tag="thinking"):
    """What was thought before; `signature` is there for clients that want one."""

    thinking: str
    signature: str


class ToolUseBlock(Struct, frozen=True, tag="tool_use"):
    """A tool that the model calls."""

    id: str
    name: str
    input: JsonObject


ContentBlock = TextBlock | ThinkingBlock | ToolUseBlock


class CacheMissReason(Struct, frozen=True):
    """Why less of the prompt was reused than was there before."""

    type: str
    cache_missed_input_tokens: int


class Diagnostics(Struct, frozen=True):
    """What a request that asked for it is told of the cache."""

    cache_miss_reason: CacheMissReason | None


StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]


class Message(Struct, frozen=True, tag="message"):
    """An answer; whole, or as it is when it begins."""

    id: str
    model: str
    content: tuple[ContentBlock, ...]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: Usage
    role: Literal["assistant"] = "assistant"
    diagnostics: Diagnostics | None = None


class MessageStart(Struct, frozen=True, tag="message_start"):
    """The first event of a stream."""

    message: Message


class Ping(Struct, frozen=True, tag="ping"):
    """Nothing, so that the connection is kept."""


class BlockStart(Struct, frozen=True, tag="content_block_start"):
    """A block begins."""

    index: int
    content_block: ContentBlock


class TextDelta(Struct, frozen=True, tag="text_delta"):
    """More text."""

    text: str


class ThinkingDelta(Struct, frozen=True, tag="thinking_delta"):
    """More of a thought."""

    thinking: str


class SignatureDelta(Struct, frozen=True, tag="signature_delta"):
    """The end of a thought."""

    signature: str


class InputJsonDelta(Struct, frozen=True, tag="input_json_delta"):
    """More of a tool's input, as JSON text."""

    partial_json: str


class BlockDelta(Struct, frozen=True, tag="content_block_delta"):
    """More of a block."""

    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


class BlockStop(Struct, frozen=True, tag="content_block_stop"):
    """A block ends."""

    index: int


class Stopped(Struct, frozen=True):
    """Why the answer ended."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(Struct, frozen=True, tag="message_delta"):
    """The answer ends."""

    delta: Stopped
    usage: Usage


class MessageStop(Struct, frozen=True, tag="message_stop"):
    """The last event of a stream."""


StreamEvent = MessageStart | Ping | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop


class TokenCount(Struct, frozen=True):
    """How many tokens a prompt has."""

    input_tokens: int
