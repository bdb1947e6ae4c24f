"""`agentcache`, but models whose folder is called `stuck` never finish loading."""

import sys
import threading
from pathlib import Path
from typing import Any

from agentcache.adapters.mlx import blas

blas.load()

from agentcache.adapters.mlx.engine import MLXEngine  # noqa: E402
from agentcache.cli.commands import main  # noqa: E402

_load = MLXEngine.load


def _load_or_not(folder: Path, *arguments: Any, **options: Any) -> MLXEngine:
    if folder.name == "stuck":
        sys.stderr.write("loading, for ever\n")
        threading.Event().wait()
    return _load(folder, *arguments, **options)


if __name__ == "__main__":
    setattr(MLXEngine, "load", _load_or_not)  # noqa: B010
    main()
