"""How long a text a schema may dictate: one that leaves nothing to choose, as that of a `const`."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from attrs import define, field

from agentcache.domain.conversation import Json

MOST = 1_000_000  # characters; beyond that it makes no difference
_DEEPEST = 100
_SILENT = frozenset(
    {"$comment", "$defs", "default", "definitions", "description", "examples", "title"}
)
_ONE_OF_THEM = frozenset({"anyOf", "enum", "oneOf"})
_NAMED = frozenset({"dependentSchemas", "patternProperties", "properties"})
_COUNT = re.compile(r"\{(\d{1,9})")


def dictated(schema: Mapping[str, Json]) -> int:
    """At least as many characters as an answer may have in a row without a choice; `MOST` at most.

    It is reckoned roughly: every array is as long, and every text, as the longest one has to be.
    """
    return _Reckoning(schema, _least(schema, "minItems"), _least(schema, "minLength")).of(schema)


@define(eq=False)
class _Reckoning:
    _schema: Mapping[str, Json]
    _items: int
    _length: int
    _refs: dict[str, int] = field(factory=dict, init=False)  # 0 for one that is being reckoned
    _depth: int = field(default=0, init=False)

    def of(self, value: Json) -> int:
        """All that `value`, a schema or a part of one, may dictate."""
        if self._depth > _DEEPEST:
            return MOST
        self._depth += 1
        found = min(MOST, self._parts(value))
        self._depth -= 1
        return found

    def _parts(self, value: Json) -> int:
        if isinstance(value, Mapping):
            return sum(self._keyword(name, one) for name, one in value.items())
        if isinstance(value, Sequence) and not isinstance(value, str):
            return sum(map(self.of, value))
        return _written(value) if isinstance(value, str) else 0

    def _keyword(self, name: str, value: Json) -> int:
        if name in _SILENT:
            return 0
        if isinstance(value, str) and name in ("$ref", "pattern"):
            return self._ref(value) if name == "$ref" else _matched(value) * self._length
        if isinstance(value, Mapping) and name in _NAMED:
            return sum(_matched(one) + self.of(schema) for one, schema in value.items())
        if isinstance(value, Sequence) and name in _ONE_OF_THEM:
            return max(map(_written if name == "enum" else self.of, value), default=0)
        if name == "const":
            return _written(value)
        return self.of(value) * (self._items if name == "items" else 1)

    def _ref(self, ref: str) -> int:
        if ref not in self._refs:
            self._refs[ref] = 0
            target: Json = self._schema
            for part in ref.removeprefix("#").split("/")[1:]:
                target = target.get(part) if isinstance(target, Mapping) else None
            self._refs[ref] = MOST if target is None else self.of(target)
        return self._refs[ref]


def _matched(pattern: str) -> int:
    """What a pattern, or a name, which is reckoned as one, may dictate."""
    return (len(pattern) + 3) * math.prod(max(1, int(count)) for count in _COUNT.findall(pattern))


def _written(value: Json) -> int:
    return len(json.dumps(value, ensure_ascii=False))


def _least(schema: Mapping[str, Json], keyword: str) -> int:
    """The greatest of the numbers that a schema has under `keyword`, 1 at least."""
    return int(min(MOST, max(_numbers(schema, keyword), default=1)))


def _numbers(schema: Json, keyword: str) -> Iterator[float]:
    left = [schema]
    while left:
        value = left.pop()
        if isinstance(value, Mapping):
            found = value.get(keyword)
            if isinstance(found, int | float) and found > 1:
                yield found
            left.extend(value.values())
        elif isinstance(value, Sequence) and not isinstance(value, str):
            left.extend(value)
