"""Tools in canonical form: equal for every client that means the same."""

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b

from agentcache.domain.conversation import Json
from agentcache.domain.errors import InvalidRequest

_MAX_DEPTH = 64

# The order in which models have seen these keys; all others follow by name.
_ORDER = ("type", "function", "name", "description", "parameters", "properties", "required")
_RANK = {key: rank for rank, key in enumerate(_ORDER)}


def canonical_tools(tools: Sequence[Mapping[str, Json]]) -> tuple[dict[str, Json], ...]:
    """The same tools in the same order, with the keys of every object in one fixed order.

    Raises InvalidRequest for schemas that are nested beyond reason.
    """
    return tuple({key: canonical(tool[key]) for key in _sorted(tool)} for tool in tools)


def tools_json(tools: Sequence[Mapping[str, Json]]) -> str:
    """Canonical tools as one JSON text; "" for none."""
    if not tools:
        return ""
    return json.dumps(canonical_tools(tools), ensure_ascii=False, separators=(",", ":"))


def parsed_tools(text: str) -> tuple[Mapping[str, Json], ...]:
    """The tools that `tools_json` wrote."""
    return tuple(json.loads(text)) if text else ()


def tools_digest(tools: Sequence[Mapping[str, Json]]) -> bytes:
    """16 bytes that differ when the tools do; b"" for none."""
    text = tools_json(tools)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() if text else b""


def canonical(value: Json, depth: int = 1) -> Json:
    """`value` as plain dicts and lists, with the keys of every object in one fixed order."""
    if depth > _MAX_DEPTH:
        raise InvalidRequest(f"tools are nested more than {_MAX_DEPTH} levels deep", "tools")
    if isinstance(value, Mapping):
        return {key: canonical(value[key], depth + 1) for key in _sorted(value)}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [canonical(one, depth + 1) for one in value]
    return value


def _sorted(keys: Mapping[str, Json]) -> list[str]:
    return sorted(keys, key=lambda key: (_RANK.get(key, len(_RANK)), key))
