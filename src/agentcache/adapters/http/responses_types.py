"""Responses as OpenAI clients write and read them.

Request fields are those of the openai SDK's `ResponseCreateParams`; others are passed over.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from agentcache.adapters.http.likely import SaidToken
from agentcache.adapters.http.openai_types import Effort
from agentcache.domain.logprobs import MOST_LOGPROBS

JsonObject = dict[str, Any]  # msgspec knows no recursive types; it makes nothing but JSON of Any
_Name = Annotated[str, Meta(max_length=256)]
# As many and as long as the API takes.
_Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16),
]


class InputPart(Struct, frozen=True):
    """A piece of an item's content; only text can be read."""

    type: str
    text: str | None = None
    refusal: str | None = None


class InputItem(Struct, frozen=True):
    """An item of the input; which fields it has depends on its type, `message` if it has none."""

    type: str = "message"
    role: Literal["developer", "system", "user", "assistant"] | None = None
    content: str | list[InputPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None


class InputTool(Struct, frozen=True):
    """A tool; those of other types are run by a server, and there is none that does."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class ToolReference(Struct, frozen=True, omit_defaults=True):
    """A tool by its name."""

    type: str
    name: str | None = None


class ToolChoice(Struct, frozen=True, omit_defaults=True):
    """Which tools are to be called: a named one, or one of several."""

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[ToolReference] | None = None


class TextFormat(Struct, frozen=True, omit_defaults=True):
    """What the text of an answer shall be; `strict` or not, it is kept to."""

    type: Literal["text", "json_object", "json_schema"]
    schema: JsonObject | None = None
    name: str | None = None
    strict: bool | None = None
    description: str | None = None


class TextConfig(Struct, frozen=True, omit_defaults=True):
    """How the text of an answer shall be."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Struct, frozen=True):
    """How much to think."""

    effort: Effort | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponsesRequest(Struct, frozen=True):
    """POST /v1/responses."""

    model: _Name
    input: str | list[InputItem] | None = None
    instructions: str | None = None
    stream: bool | None = None
    store: bool | None = None
    previous_response_id: _Name | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MOST_LOGPROBS)] | None = None
    tools: list[InputTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = None
    metadata: _Metadata | None = None
    truncation: Literal["auto", "disabled"] | None = None
    prompt_cache_key: _Name | None = None
    safety_identifier: str | None = None
    user: str | None = None
    # What follows is known, and refused unless it asks for nothing (responses_ask.NEUTRAL).
    background: bool | None = None
    conversation: str | JsonObject | None = None
    prompt: JsonObject | None = None
    max_tool_calls: int | None = None


class OutputText(Struct, frozen=True, tag="output_text"):
    """What was said."""

    text: str
    annotations: tuple[()] = ()
    logprobs: tuple[SaidToken, ...] = ()


class ReasoningText(Struct, frozen=True, tag="reasoning_text"):
    """What was thought."""

    text: str


Status = Literal["in_progress", "completed", "incomplete"]


class OutputMessage(Struct, frozen=True, tag="message"):
    """What the model says."""

    id: str
    content: tuple[OutputText, ...]
    status: Status
    role: Literal["assistant"] = "assistant"


class FunctionCall(Struct, frozen=True, tag="function_call"):
    """A tool that the model calls."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


class ReasoningItem(Struct, frozen=True, tag="reasoning"):
    """What the model thinks before it speaks."""

    id: str
    content: tuple[ReasoningText, ...]
    status: Status
    summary: tuple[()] = ()


OutputItem = OutputMessage | FunctionCall | ReasoningItem
Part = OutputText | ReasoningText


class InputDetails(Struct, frozen=True):
    """How much of the input was not computed again."""

    cached_tokens: int


class OutputDetails(Struct, frozen=True):
    """How much of the output was thought, as near as it is known."""

    reasoning_tokens: int


class Usage(Struct, frozen=True):
    """Tokens of a turn; `input_tokens` includes the cached ones."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseError(Struct, frozen=True):
    """Why a response failed."""

    code: str
    message: str


class IncompleteDetails(Struct, frozen=True):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]


class Asked(Struct, frozen=True, kw_only=True):
    """What a request asked for, defaults filled in, as its response tells it. What is not known any
    more, or was too long to be kept, is null.
    """

    instructions: str | None = None
    previous_response_id: str | None = None
    parallel_tool_calls: bool | None = None
    tool_choice: str | ToolChoice | None = None
    tools: list[InputTool] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    max_output_tokens: int | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    truncation: str | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None


class Response(Asked, frozen=True, kw_only=True):
    """A response, whole or as it is so far. `status` is null where it is not known any more."""

    id: str
    created_at: int
    model: str
    status: ResponseStatus | None
    output: tuple[OutputItem, ...]
    usage: Usage | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    store: bool = True
    background: bool = False
    completed_at: int | UnsetType | None = UNSET
    object: Literal["response"] = "response"


class Deleted(Struct, frozen=True):
    """A response that is gone."""

    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class ResponseEvent(Struct, frozen=True):
    """What becomes of the response: `type` is response.created, .in_progress, .completed, ..."""

    type: str
    sequence_number: int
    response: Response


class ItemEvent(Struct, frozen=True):
    """An item begins (`response.output_item.added`) or is done (`.done`)."""

    type: str
    sequence_number: int
    output_index: int
    item: OutputItem


class PartEvent(Struct, frozen=True):
    """A part of an item begins (`response.content_part.added`) or is done (`.done`)."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    part: Part


class DeltaEvent(Struct, frozen=True):
    """More of a part: of its text, or of its thought."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: tuple[SaidToken, ...] | UnsetType = UNSET


class TextDone(Struct, frozen=True):
    """The whole text of a part."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: tuple[SaidToken, ...] | UnsetType = UNSET


class ArgumentsDelta(Struct, frozen=True):
    """More of a call's arguments."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    delta: str


class ArgumentsDone(Struct, frozen=True):
    """All of a call's arguments."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    name: str
    arguments: str


class ErrorEvent(Struct, frozen=True):
    """What went wrong in mid-stream."""

    sequence_number: int
    message: str
    code: str | None
    param: str | None
    type: str = "error"


StreamEvent = (
    ResponseEvent
    | ItemEvent
    | PartEvent
    | DeltaEvent
    | TextDone
    | ArgumentsDelta
    | ArgumentsDone
    | ErrorEvent
)
