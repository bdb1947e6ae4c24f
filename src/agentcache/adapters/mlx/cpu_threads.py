"""Spread numpy work over a few threads: numpy lets go of the GIL inside each operation."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from queue import SimpleQueue
from threading import Thread

from attrs import field, frozen

from agentcache.adapters.mlx.blas import kernel_threads

Task = Callable[[], None]

CREW = "agentcache-cpu"  # what the names of these threads begin with


def run_all(tasks: Sequence[Task], *, spread: bool) -> None:
    """Run every task, on `kernel_threads()` threads if `spread`, and return when all are done.

    The calling thread is one of them, so a thread that gets no core holds up its own task alone.
    The first exception of a task is raised here, when no task is running any more.
    """
    threads = kernel_threads()
    others = min(threads, len(tasks)) - 1 if spread else 0
    if others <= 0:
        for task in tasks:
            task()
        return
    job = _Job(deque(tasks))
    calls = _crew(threads - 1)
    for _ in range(others):
        calls.put(job)
    found = list(job.work())
    found += [job.elsewhere.get() for _ in range(len(tasks) - len(found))]
    for error in found:
        if error is not None:
            raise error


@frozen(eq=False)
class _Job:
    """Tasks that nobody has begun, and how those ended that other threads have taken.

    Taking a task off a deque is atomic. A thread that comes too late finds none, so nobody has to
    wait for it.
    """

    left: deque[Task]
    elsewhere: "SimpleQueue[Exception | None]" = field(factory=SimpleQueue)

    def work(self) -> Iterator[Exception | None]:
        """Run tasks until there are none: how each of them ended."""
        while True:
            try:
                task = self.left.popleft()
            except IndexError:
                return
            try:
                task()
            except Exception as error:
                yield error
            else:
                yield None


@cache
def _crew(threads: int) -> "SimpleQueue[_Job]":
    """Where so many threads wait for jobs, as long as the process lives.

    A thread of an executor costs three times as much for a task: a product of a decode step takes
    a tenth of a millisecond, and there are hundreds.
    """
    calls: SimpleQueue[_Job] = SimpleQueue()
    for n in range(threads):
        Thread(target=_follow, args=(calls,), name=f"{CREW}-{n}", daemon=True).start()
    return calls


def _follow(calls: "SimpleQueue[_Job]") -> None:
    while True:
        job = calls.get()
        for ended in job.work():
            job.elsewhere.put(ended)
        del job  # what it refers to shall not live until the next call


# A forked child has the queue but none of its threads, and would wait for them for ever.
os.register_at_fork(after_in_child=_crew.cache_clear)
