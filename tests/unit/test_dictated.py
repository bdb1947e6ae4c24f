"""How long a text a schema may dictate."""

from typing import Any

import pytest

from agentcache.domain.dictated import MOST, dictated

LONG = "a" * 5000


def doubled(times: int) -> Any:
    """A text of a thousand characters in a list twice, and that in a list twice, and so on."""
    defs: dict[str, Any] = {"0": {"const": "a" * 1000}}
    for n in range(times):
        defs[str(n + 1)] = {"type": "array", "prefixItems": [{"$ref": f"#/$defs/{n}"}] * 2}
    return {"$ref": f"#/$defs/{times}", "$defs": defs}


@pytest.mark.parametrize(
    "schema",
    [
        {"const": LONG},
        {"const": {"a": [LONG]}},
        {"enum": ["b", LONG]},
        {"pattern": LONG},
        {"pattern": "^a{5000}$"},
        {"pattern": "^(a{90}){90}$"},
        {"pattern": "^a*$", "minLength": 5000},
        {"properties": {LONG: True}, "required": [LONG]},
        {"required": [f"name {n}" for n in range(1000)]},
        {"patternProperties": {"^a{5000}$": True}},
        {"items": {"const": "a" * 50}, "minItems": 100},
        {"items": {"type": "null"}, "minItems": 1000},
        {"items": {"const": "a" * 50}, "allOf": [{"minItems": 100}]},
        {"properties": {"title": {"anyOf": [{"type": "null"}, {"const": LONG}]}}},
        {"allOf": [{"const": LONG}]},
        doubled(8),
        {"$ref": "https://example.com/schema"},
    ],
)
def test_a_long_text_is_found_wherever_it_comes_from(schema: Any) -> None:
    assert 4096 < dictated(schema) <= MOST


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "description": LONG, "title": LONG, "examples": [LONG]},
        {"enum": [f"value {n}" for n in range(10_000)]},
        {"anyOf": [{"const": "a" * 1000}] * 100},
        {"type": "string", "minLength": 5000},
        {"type": "array", "items": {"type": "integer"}, "minItems": 100},
        {"$defs": {"unused": {"const": LONG}}},
        {"$ref": "#/$defs/n", "$defs": {"n": {"properties": {"next": {"$ref": "#/$defs/n"}}}}},
    ],
)
def test_what_leaves_a_choice_or_is_never_said_is_not_dictated(schema: Any) -> None:
    assert dictated(schema) <= 4096


def test_a_schema_of_any_depth_is_reckoned() -> None:
    schema: Any = {"const": 1}
    for _ in range(100_000):
        schema = {"items": schema}
    assert dictated({"properties": {"a": schema}}) == MOST
