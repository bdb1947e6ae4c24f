"""Spread numpy work over a few threads: numpy lets go of the GIL inside each operation."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from agentcache.adapters.mlx.blas import thread_count

Task = Callable[[], None]


def run_all(tasks: Sequence[Task], *, spread: bool) -> None:
    """Run every task, on `thread_count()` threads if `spread`, and return when all are done.

    The first exception of a task is raised here, when no task is running any more.
    """
    workers = min(thread_count(), len(tasks)) if spread else 1
    if workers <= 1:
        for task in tasks:
            task()
        return
    running = [_pool(workers).submit(task) for task in tasks]
    errors = [error for error in [future.exception() for future in running] if error]
    if errors:
        raise errors[0]


@lru_cache(maxsize=1)
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="agentcache-cpu")


# A forked child has the pool but none of its threads, and would wait for them for ever.
os.register_at_fork(after_in_child=_pool.cache_clear)
