"""Contract tests: what every adapter of a port promises, for others to run over theirs.

Needs pytest and hypothesis (`agentcache-mlx[testing]`). Each module has a class to subclass; what
has to be overridden is in its docstring.
"""

import pytest

PORTS = (
    "clock",
    "codec",
    "engine",
    "model_source",
    "segment_store",
    "session_store",
    "telemetry",
    "tokenizer",
)

pytest.register_assert_rewrite(*(f"{__name__}.{port}" for port in PORTS))
