"""Schemas that refer to nothing but themselves, of which there is no instance."""

import math
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import unquote

from agentcache.domain.conversation import Json
from agentcache.domain.errors import InvalidRequest

MOST_REFS = 1000


def check_refs(schema: Mapping[str, Json]) -> None:
    """Raise InvalidRequest for a `$ref` that leads back to itself before it describes anything.

    Only references within the schema are followed.
    """
    refs = set(_refs(schema))
    if len(refs) > MOST_REFS:
        raise InvalidRequest(f"the schema has {len(refs)} different $ref: at most {MOST_REFS} fit")
    endless = refs
    while found := {ref for ref in endless if _describes(_target(schema, ref), endless)}:
        endless = endless - found
    if endless:
        raise InvalidRequest(f"$ref {sorted(endless)[0][:80]!r} leads to nothing but itself")


def _refs(value: Json) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(ref := value.get("$ref"), str):
            yield ref
        for one in value.values():
            yield from _refs(one)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for one in value:
            yield from _refs(one)


def _describes(schema: Json, endless: set[str]) -> bool:
    """Whether `schema` has instances, as far as is known, if those that are `endless` have none."""
    if not isinstance(schema, Mapping):
        return True
    if schema.get("$ref") in endless or not _holds(schema, endless):
        return False
    if not all(_describes(one, endless) for one in _list(schema, "allOf")):
        return False
    choices = [_list(schema, key) for key in ("anyOf", "oneOf")]
    return all(any(_describes(one, endless) for one in ones) for ones in choices if ones)


def _holds(schema: Mapping[str, Json], endless: set[str]) -> bool:
    """Whether what an object or array has to hold, if the schema is one of these alone, exists."""
    kind = schema.get("type")
    if kind in ("object", ["object"]):
        known = schema.get("properties")
        properties = known if isinstance(known, Mapping) else {}
        held = [properties.get(name) for name in _list(schema, "required") if isinstance(name, str)]
    elif kind in ("array", ["array"]):
        least = schema.get("minItems")
        count = int(least) if isinstance(least, int | float) and 0 < least < math.inf else 0
        first = _list(schema, "prefixItems")[:count]
        held = [*first, schema.get("items")] if count > len(first) else [*first]
    else:
        return True
    return all(_describes(one, endless) for one in held)


def _list(schema: Mapping[str, Json], key: str) -> Sequence[Json]:
    found = schema.get(key)
    return found if isinstance(found, Sequence) and not isinstance(found, str) else ()


def _target(schema: Json, ref: str) -> Json:
    """What a JSON pointer (RFC 6901) in a fragment leads to; None where it leads to nothing."""
    if ref not in ("", "#") and not ref.startswith("#/"):
        return None
    for part in unquote(ref).removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(schema, Mapping):
            schema = schema.get(name)
        elif isinstance(schema, Sequence) and not isinstance(schema, str) and name.isdecimal():
            schema = schema[int(name)] if int(name[:9]) < len(schema) else None
        else:
            return None
    return schema
