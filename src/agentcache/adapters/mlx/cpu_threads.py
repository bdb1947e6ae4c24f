"""Spread numpy work over a few threads: numpy lets go of the GIL inside each operation."""

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from agentcache.adapters.mlx.blas import thread_count

Task = Callable[[], None]


def run_all(tasks: Sequence[Task], *, spread: bool) -> None:
    """Run every task, on `thread_count()` threads if `spread`, and return when all are done.

    The calling thread is one of them, so a thread that gets no core holds up its own task alone.
    The first exception of a task is raised here, when no task is running any more.
    """
    workers = min(thread_count(), len(tasks)) if spread else 1
    if workers <= 1:
        for task in tasks:
            task()
        return
    left, errors = deque(tasks), deque[Exception]()
    helpers = [_pool(workers - 1).submit(_drain, left, errors) for _ in range(workers - 1)]
    _drain(left, errors)
    for helper in helpers:
        if not helper.cancel():  # it has begun
            helper.result()
    if errors:
        raise errors[0]


def _drain(left: deque[Task], errors: deque[Exception]) -> None:
    """Run tasks until there are none. Appending and popping are atomic."""
    while True:
        try:
            task = left.popleft()
        except IndexError:
            return
        try:
            task()
        except Exception as error:
            errors.append(error)


@lru_cache(maxsize=1)
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="agentcache-cpu")


# A forked child has the pool but none of its threads, and would wait for them for ever.
os.register_at_fork(after_in_child=_pool.cache_clear)
