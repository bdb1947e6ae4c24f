"""mlx_lm.server whose conversations survive a restart, and kill -9.

    python examples/mlx_lm_server_with_memory.py --model PATH --port 8080

Takes every option of mlx_lm.server, and is that server but for one line. What it remembers is in
AGENTCACHE_HOME (default ~/.agentcache), encoded by AGENTCACHE_CODEC (default native: lossless).
"""

import os
from functools import partial

from agentcache.adapters.mlx import blas
from agentcache.prompt_cache import lru_prompt_cache

blas.load()  # Linux without a GPU: a fast BLAS has to be there before MLX is

from mlx_lm import server  # noqa: E402

HOME = os.environ.get("AGENTCACHE_HOME", "~/.agentcache")
CODEC = os.environ.get("AGENTCACHE_CODEC", "native")

if __name__ == "__main__":
    server.LRUPromptCache = partial(lru_prompt_cache, home=HOME, codec=CODEC)  # the one line
    server.main()
