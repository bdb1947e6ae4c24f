"""Parameters that are known and cannot be honoured: refused, unless they ask for nothing."""

from collections.abc import Mapping

from agentcache.domain.conversation import Json
from agentcache.domain.errors import InvalidRequest

Neutral = Mapping[str, tuple[Json, ...]]


def refuse_unsupported(request: object, neutral: Neutral) -> None:
    """Raise InvalidRequest, naming it, for a field of `request` with another value than these.

    The values ask for nothing beside what is done anyway; null always does.
    """
    for name, values in neutral.items():
        value = getattr(request, name)
        if value is not None and value not in values:
            raise InvalidRequest(f"{name} is not supported: leave it out", name)
