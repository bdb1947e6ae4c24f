"""What is asked for in the query of an address."""

import re

from starlette.requests import Request

from agentcache.domain.errors import InvalidRequest

_FLAGS = {"true": True, "1": True, "false": False, "0": False}


def flag(request: Request, name: str) -> bool:
    """Whether `name` is true; it is not if it is left out. Raises InvalidRequest."""
    found = _FLAGS.get(request.query_params.get(name, "false").lower())
    if found is None:
        raise InvalidRequest(f"{name} must be true or false", name)
    return found


def number(request: Request, name: str, most: int) -> int:
    """`name` as a number from 1 to `most`, which it is if it is left out. Raises InvalidRequest."""
    text = request.query_params.get(name, str(most))
    if re.fullmatch("[0-9]{1,9}", text) is None or not 1 <= int(text) <= most:
        raise InvalidRequest(f"{name} must be 1 to {most}", name)
    return int(text)
