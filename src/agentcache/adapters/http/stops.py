"""Stop sequences as requests bring them."""

from collections.abc import Sequence

from agentcache.domain.errors import InvalidRequest

MOST_STOPS = 16


def checked_stops(stops: Sequence[str], param: str) -> tuple[str, ...]:
    """`stops` as they are. Raises InvalidRequest, naming `param`, for too many or an empty one."""
    if len(stops) > MOST_STOPS:
        problem = f"{param} has {len(stops)} sequences, at most {MOST_STOPS} fit"
        raise InvalidRequest(problem, param)
    if not all(stops):
        raise InvalidRequest("a stop sequence must not be empty", param)
    return tuple(stops)
