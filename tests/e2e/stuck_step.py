"""`agentcache`, but the engine never comes back from a step once the file is there that
AGENTCACHE_TEST_STUCK names; and two seconds are long for a step.
"""

import os
import sys
import threading
from pathlib import Path

from agentcache.adapters.mlx import blas

blas.load()

from agentcache import loop  # noqa: E402
from agentcache.adapters.mlx.engine import MLXEngine  # noqa: E402
from agentcache.cli.commands import main  # noqa: E402
from agentcache.domain.plan import StepResult  # noqa: E402

_collect = MLXEngine.collect


def _collect_or_not(engine: MLXEngine) -> StepResult:
    if Path(os.environ["AGENTCACHE_TEST_STUCK"]).exists():
        sys.stderr.write("stuck, for ever\n")
        threading.Event().wait()
    return _collect(engine)


if __name__ == "__main__":
    setattr(MLXEngine, "collect", _collect_or_not)  # noqa: B010
    setattr(loop, "STALLED_SECONDS", 2.0)  # noqa: B010
    main()
