"""The one layer rule that import-linter has no contract for (the others: pyproject.toml)."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import agentcache

DOMAIN = sorted((Path(agentcache.__file__).parent / "domain").rglob("*.py"))


@pytest.mark.parametrize("source", DOMAIN, ids=lambda path: path.stem)
def test_the_domain_imports_only_the_standard_library_attrs_and_itself(source: Path) -> None:
    assert _foreign(source.read_text()) == []


@pytest.mark.parametrize(
    ("statement", "foreign"),
    [
        ("import hashlib, numpy.linalg", ["numpy.linalg"]),
        ("def late():\n    from agentcache.ports.clock import Clock", ["agentcache.ports.clock"]),
        ("from ..ports import clock", ["..ports"]),
        ("from agentcache.domain.spec import CacheSpec", []),
    ],
)
def test_a_foreign_import_is_found_wherever_it_stands(statement: str, foreign: list[str]) -> None:
    assert _foreign(statement) == foreign


def _foreign(source: str) -> list[str]:
    """The modules that `source` imports and the domain must not."""
    own = sys.stdlib_module_names | {"attrs"}
    return [
        name
        for name in _imported(source)
        if name.partition(".")[0] not in own and not f"{name}.".startswith("agentcache.domain.")
    ]


def _imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
