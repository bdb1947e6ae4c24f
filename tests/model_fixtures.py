"""The default model, made once for every test run and process on this machine."""

import os
from pathlib import Path

import pytest

from agentcache.adapters.models import DEFAULT_MODEL, LocalModelSource
from agentcache.ports.model_source import ModelFolder, Stage


@pytest.fixture(scope="session")
def default_model_home() -> Path:
    """A home directory that holds the default model; shared, so leave everything else alone."""
    named = os.environ.get("AGENTCACHE_TEST_HOME")
    home = Path(named) if named else Path(__file__).parent.parent / ".cache" / "home"
    # Whoever comes second waits for the first one's lock, then finds the model made.
    LocalModelSource(home).resolve(DEFAULT_MODEL, _quiet)
    return home


@pytest.fixture(scope="session")
def default_model(default_model_home: Path) -> ModelFolder:
    """The default model, ready to load."""
    return LocalModelSource(default_model_home).resolve(DEFAULT_MODEL, _quiet)


def _quiet(_done: int, _total: int | None, _stage: Stage) -> None:
    pass
