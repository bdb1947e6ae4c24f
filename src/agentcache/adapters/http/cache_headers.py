"""What the cache did for a turn, on every answer of every dialect."""

from agentcache.adapters.http.identity import as_header
from agentcache.domain.events import Admitted
from agentcache.domain.request import Miss


def cache_headers(admitted: Admitted) -> dict[str, str]:
    """How many tokens were served, from where; why not more; and who the agent is."""
    headers = {
        "x-agentcache-cached-tokens": str(admitted.cached),
        "x-agentcache-tier": admitted.tier.value,
    }
    if admitted.miss is not Miss.NONE:
        headers["x-agentcache-miss"] = admitted.miss.value
    if admitted.agent is not None:
        headers["x-agentcache-agent"] = as_header(admitted.agent)
    return headers
