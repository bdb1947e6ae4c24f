"""Models whose answers mean nothing but depend on every token before them, and start in seconds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import Server, served
from tests.tiny_models import tiny_llama


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights; its tokens are bytes."""
    return tiny_llama(tmp_path_factory.mktemp("one") / "tiny", 1, layers=4, context=8192)


@pytest.fixture(scope="package")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights, of the same name and geometry."""
    return tiny_llama(tmp_path_factory.mktemp("other") / "tiny", 2, layers=4, context=8192)


@pytest.fixture(scope="package")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Server]:
    """A server that nothing ever happens to: what others should have answered."""
    with served(tmp_path_factory.mktemp("undisturbed") / "home", model) as server:
        yield server
