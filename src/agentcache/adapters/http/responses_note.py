"""What a request for a response asked for: as its answer tells it, and as it is kept with that."""

import msgspec

from agentcache.adapters.http.responses_types import (
    Asked,
    Reasoning,
    ResponsesRequest,
    TextConfig,
    TextFormat,
)
from agentcache.domain.request import Sampling

MOST_NOTED = 64 * 1024  # bytes of JSON
_encode = msgspec.json.Encoder().encode
_USUAL = Sampling()
_SAID = (
    "instructions",
    "previous_response_id",
    "max_output_tokens",
    "prompt_cache_key",
    "safety_identifier",
    "user",
)


def asked_of(request: ResponsesRequest) -> Asked:
    """What `request` asked for, with the values that are used where it named none."""
    form = request.text.format if request.text else None
    verbosity = request.text.verbosity if request.text else None
    heat, top_p = request.temperature, request.top_p
    return Asked(
        **{name: getattr(request, name) for name in _SAID},
        parallel_tool_calls=request.parallel_tool_calls is not False,
        tool_choice=request.tool_choice or "auto",
        tools=request.tools or [],
        temperature=_USUAL.temperature if heat is None else heat,
        top_p=_USUAL.top_p if top_p is None else top_p,
        top_logprobs=request.top_logprobs or 0,
        text=TextConfig(form or TextFormat("text"), verbosity),
        reasoning=request.reasoning or Reasoning(),
        truncation="disabled",
        metadata=request.metadata or {},
    )


def noted(asked: Asked) -> str:
    """`asked` as text of at most MOST_NOTED bytes, without the longest of what does not fit."""
    text = _encode(asked)
    if len(text) > MOST_NOTED:
        told = {name: _encode(getattr(asked, name)) for name in asked.__struct_fields__}
        while sum(map(len, told.values())) > MOST_NOTED - 1024:  # names and commas
            del told[max(told, key=lambda name: len(told[name]))]
        text = _encode({name: msgspec.Raw(one) for name, one in told.items()})
    return text.decode()


def recalled(note: str | None) -> Asked:
    """What was noted; nothing where there is no note that could be read."""
    try:
        return msgspec.json.decode(note or "{}", type=Asked)
    except msgspec.MsgspecError:
        return Asked()
