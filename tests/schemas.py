"""Strategies for JSON schemas of every kind, most of them such that an answer can be kept to."""

from typing import Any

from hypothesis import strategies as st

NAMES = ["a", "b", "d e", 'f"g', "é"]
_BOUNDS = st.sampled_from([0, 1, -5, 3.5, 100, 0.001])
_PATTERNS = ["^a+$", "^[a-z]{2,5}$", "x", "^(foo|bar)", "[0-9]+$", "^.{3}$", "^(a|b)*c$"]
_VALUES = st.sampled_from([1, 2.5, "a", 'b"c', None, True, [1], {"a": 1}, "日本", "\n", "", -3])
_texts = st.fixed_dictionaries(
    {"type": st.just("string")},
    optional={
        "minLength": st.integers(0, 5),
        "maxLength": st.sampled_from([0, 5, 20, 5000]),
        "pattern": st.sampled_from(_PATTERNS),
    },
)
_numbers = st.fixed_dictionaries(
    {"type": st.just("integer")},
    optional={
        "minimum": _BOUNDS,
        "exclusiveMaximum": _BOUNDS,
        "multipleOf": st.sampled_from([1, 2, 7, 100]),
    },
)
_leaves = st.one_of(
    _texts,
    _numbers,
    st.sampled_from([{"type": one} for one in ("boolean", "null", "number", "array")]),
    st.just({"type": "number", "maximum": 9}),
    st.builds(lambda one: {"const": one}, _VALUES),
    st.builds(lambda some: {"enum": some}, st.lists(_VALUES, min_size=1, max_size=4)),
    st.sampled_from([{"$ref": "#"}, {"$ref": "#/$defs/x"}, {"type": ["string", "null"]}]),
)


@st.composite
def _objects(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(NAMES), max_size=3, unique=True))
    found: dict[str, Any] = {
        "type": "object",
        "properties": {name: draw(inner) for name in names},
        "required": [name for name in names if draw(st.booleans())],
    }
    if draw(st.booleans()):
        found["additionalProperties"] = draw(st.just(False) | inner)
    return found


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(inner, min_size=1, max_size=3)
    arrays = st.fixed_dictionaries(
        {"type": st.just("array"), "items": inner},
        optional={
            "minItems": st.integers(0, 2),
            "maxItems": st.integers(1, 3),
            "prefixItems": some,
        },
    )
    chosen = st.builds(
        lambda key, ones: {key: ones}, st.sampled_from(["anyOf", "oneOf", "allOf"]), some
    )
    return _objects(inner) | arrays | chosen


_schemas = st.recursive(_leaves, _nested, max_leaves=6)
schemas = st.builds(lambda one, x: {**one, "$defs": {"x": x}}, _schemas, _leaves)
