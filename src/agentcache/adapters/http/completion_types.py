"""Completions of raw text as OpenAI clients write and read them.

Request fields are those of the openai SDK's `completion_create_params`; others are passed over.
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from agentcache.adapters.http.openai_types import StreamOptions, Usage
from agentcache.domain.logprobs import MOST_LOGPROBS

_Name = Annotated[str, Meta(max_length=256)]
Finished = Literal["stop", "length"]
TokenId = Annotated[int, Meta(ge=0, lt=2**31)]


class CompletionRequest(Struct, frozen=True):
    """POST /v1/completions. `top_k`, `min_p`, `store` and `prompt_cache_key` are extensions."""

    model: _Name
    prompt: str | list[str | TokenId | list[TokenId]]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MOST_LOGPROBS)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    store: bool | None = None
    prompt_cache_key: _Name | None = None
    user: str | None = None
    # What follows is known, and refused unless it asks for nothing (completion_ask.NEUTRAL).
    n: int | None = None
    best_of: int | None = None
    suffix: str | None = None


class CompletionLogprobs(Struct, frozen=True):
    """How likely tokens were; `text_offset` is where each begins in the prompt and the text after
    it, in characters.
    """

    tokens: tuple[str, ...]
    token_logprobs: tuple[float, ...]
    top_logprobs: tuple[dict[str, float], ...]
    text_offset: tuple[int, ...]


class CompletionChoice(Struct, frozen=True):
    """The one text there is, or more of it."""

    text: str
    finish_reason: Finished | None = None
    index: int = 0
    logprobs: CompletionLogprobs | None = None


class Completion(Struct, frozen=True):
    """A whole text, or one event of a stream: then `usage` is there only if it was asked for."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: tuple[CompletionChoice, ...]
    usage: Usage | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"
