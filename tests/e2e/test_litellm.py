"""litellm against a server. It pins old packages, so it lives in an environment of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Server

VERSION = "1.110.2"
ENVIRONMENT = Path(__file__).parents[2] / ".cache" / "clients" / f"litellm-{VERSION}"
PROGRAM = Path(__file__).with_name("litellm_client.py")
SCHEMA = {
    "type": "object",
    "properties": {"at": {"type": "string", "maxLength": 8}},
    "required": ["at"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of an environment with litellm, made once for a checkout."""
    interpreter, done = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "complete"
    if not done.exists():
        _run(sys.executable, "-m", "venv", "--clear", ENVIRONMENT)
        _run(interpreter, "-m", "pip", "install", "--quiet", f"litellm=={VERSION}")
        done.touch()
    return interpreter


@pytest.mark.timeout(900)
def test_litellm_talks_both_dialects_streams_and_uses_tools(
    python: Path, undisturbed: Server
) -> None:
    told: Any = json.loads(_run(python, PROGRAM, undisturbed.url, json.dumps(SCHEMA)))
    assert told["text"] == told["streamed"] == told["messages"] != ""
    assert told["cached"] > 0
    assert [(name, set(arguments)) for name, arguments in told["calls"]]
    assert {name for name, _ in told["calls"]} == {"look"}
    assert told["error"] == "NotFoundError"


def _run(*arguments: object) -> str:
    """The last line that the command says."""
    done = subprocess.run(
        [str(argument) for argument in arguments],
        env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return (done.stdout.strip().splitlines() or [""])[-1]
