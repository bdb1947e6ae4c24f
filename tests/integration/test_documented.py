"""The examples in docstrings and documents are run as they stand, over a tiny model."""

import asyncio
import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest

import agentcache
from tests.tiny_models import tiny_llama

ROOT = Path(__file__).parent.parent.parent
MODULES = ["agentcache", "agentcache.library.entrance", "agentcache.library.synchronous"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny", seed=3)


@pytest.fixture(autouse=True)
def _chosen(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCACHE_MODEL", str(model))
    monkeypatch.setenv("AGENTCACHE_HOME", str(tmp_path / "home"))


def run(tests: list[doctest.DocTest]) -> int:
    """How many examples there were; all of them are right."""
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    told: list[str] = []
    for test in tests:
        runner.run(test, out=told.append)
    assert runner.failures == 0, "".join(told)
    return runner.tries


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_are_right(name: str) -> None:
    names = {"agentcache": agentcache, "asyncio": asyncio}
    found = doctest.DocTestFinder().find(import_module(name), name, extraglobs=names)
    assert run(found) >= 3


def test_the_page_on_the_library_is_right() -> None:
    text = (ROOT / "docs" / "library.md").read_text("utf-8").replace("```", "")
    page = doctest.DocTestParser().get_doctest(text, {}, "library.md", "library.md", 0)
    assert run([page]) > 15


def test_the_readme_is_right(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    (library,) = (block for block in blocks if "agentcache.open(" in block)
    exec(compile(library, "README.md", "exec"), {})
    assert "remembered" in capsys.readouterr().out
