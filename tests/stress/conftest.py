"""The model that is loaded, servers that clients press on, and a report of what was measured."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stress.scale import SCALE
from tests.tiny_models import tiny_llama

_REPORT = pytest.StashKey[list[str]]()
Report = Callable[[object], None]


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights, 512 bytes a row; its tokens are bytes."""
    return tiny_llama(tmp_path_factory.mktemp("one") / "tiny", 1, context=8192)


@pytest.fixture(scope="package")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, of other weights and name."""
    return tiny_llama(tmp_path_factory.mktemp("other") / "small", 2, context=8192)


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Takes what is worth reading after the tests; nothing of it is asserted."""
    lines = request.config.stash.setdefault(_REPORT, [])
    name = request.node.name.removeprefix("test_").replace("_", " ")
    lines.append(f"{name}:")
    return lambda what: lines.append(f"    {what}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A load of full size may take longer than other tests."""
    for item in items:
        if "server" in getattr(item, "fixturenames", ()) or "report" in getattr(
            item, "fixturenames", ()
        ):
            item.add_marker(pytest.mark.timeout(SCALE.limit))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Tell what was measured."""
    if lines := config.stash.get(_REPORT, []):
        terminalreporter.section("measured under load")
        for line in lines:
            terminalreporter.line(line)
