"""From a completion request to an Ask; what cannot be honoured is refused by name."""

from typing import Final

from starlette.datastructures import Headers

from agentcache.adapters.http.completion_types import CompletionRequest
from agentcache.adapters.http.identity import identify
from agentcache.adapters.http.keeping import kept
from agentcache.adapters.http.neutral import Neutral, refuse_unsupported
from agentcache.adapters.http.openai_ask import check_stream_options, sampled, stops
from agentcache.domain.conversation import Conversation
from agentcache.domain.errors import InvalidRequest
from agentcache.service import Ask

NEUTRAL: Final[Neutral] = {"n": (1,), "best_of": (1,), "suffix": ("",)}
USUAL_TOKENS = 16  # the API's own default


def asked(request: CompletionRequest, headers: Headers) -> Ask:
    """What the service shall do. Raises InvalidRequest that names the parameter."""
    refuse_unsupported(request, NEUTRAL)
    check_stream_options(request)
    if request.echo and request.logprobs is not None:
        raise InvalidRequest("logprobs of a prompt that is echoed cannot be told", "logprobs")
    return Ask(
        model=request.model,
        identity=identify(headers, prompt_cache_key=request.prompt_cache_key),
        conversation=Conversation((), text=_prompt(request.prompt)),
        sampling=sampled(request, request.logprobs),
        max_tokens=USUAL_TOKENS if request.max_tokens is None else request.max_tokens,
        stop=stops(request.stop),
        **kept(request.store, request.prompt_cache_key),
    )


def _prompt(prompt: str | list[str | int | list[int]]) -> str | tuple[int, ...]:
    """The one prompt there is, as text or as token ids."""
    if isinstance(prompt, str):
        return prompt
    ids = tuple(one for one in prompt if isinstance(one, int))
    if ids and len(ids) == len(prompt):
        return ids
    if len(prompt) != 1:
        raise InvalidRequest("prompt must be one text, or the token ids of one", "prompt")
    only = prompt[0]
    return tuple(only) if isinstance(only, list) else str(only)
