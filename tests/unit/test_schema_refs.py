"""Schemas that refer to themselves: well, if they say something on the way."""

from typing import Any

import pytest

from agentcache.domain.errors import InvalidRequest
from agentcache.domain.schema_refs import check_refs

SELF = {"$ref": "#/$defs/x"}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"$ref": "#/$defs/x", "$defs": {"x": {"type": "string"}}},
        {"$ref": "#/$defs/x", "$defs": {"x": {"anyOf": [SELF, {"type": "string"}]}}},
        {"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"type": "null"}}},
        {"$ref": "#/anyOf/1", "anyOf": [{}, {"type": "string"}]},
        {"$ref": "#/nowhere/9"},
        {"$ref": "http://elsewhere.example/"},
        {"$ref": 5},
        {"type": ["object", "null"], "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a", 5]},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 0},
        {"type": "array", "prefixItems": [{}], "items": {"$ref": "#"}, "minItems": 1},
    ],
)
def test_a_schema_that_describes_something_is_taken(schema: dict[str, Any]) -> None:
    check_refs(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": ""},
        {"$ref": "#/$defs/x", "$defs": {"x": SELF}},
        {"items": SELF, "$defs": {"x": {"$ref": "#/$defs/y"}, "y": SELF}},
        {"items": SELF, "$defs": {"x": {"anyOf": [SELF, {"oneOf": [SELF]}]}}},
        {"items": SELF, "$defs": {"x": {"allOf": [{"type": "string"}, SELF]}}},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": ["array"], "prefixItems": [{}, {"$ref": "#"}], "minItems": 2},
    ],
)
def test_one_that_leads_to_nothing_but_itself_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="nothing but itself"):
        check_refs(schema)


def test_more_references_than_anybody_needs_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="at most 1000"):
        check_refs({"anyOf": [{"$ref": f"#/{number}"} for number in range(1001)]})
