"""Tasks on a few threads: all are run, by whoever is free, and a failure is told at the end."""

import threading

import pytest

from agentcache.adapters.mlx import blas
from agentcache.adapters.mlx.cpu_threads import run_all


def test_every_task_runs_once_and_is_done_when_the_call_returns() -> None:
    done: list[int] = []
    with blas.threads(3):
        run_all([lambda n=n: done.append(n) for n in range(100)], spread=True)  # type: ignore[misc]
    assert sorted(done) == list(range(100))


def test_two_threads_work_at_once_and_one_of_them_is_the_callers() -> None:
    met = threading.Barrier(2, timeout=60)
    threads: list[int] = []

    def meet() -> None:
        met.wait()
        threads.append(threading.get_ident())

    with blas.threads(2):
        run_all([meet, meet], spread=True)
    assert len(set(threads)) == 2
    assert threading.get_ident() in threads


def test_what_another_thread_holds_up_does_not_hold_up_the_rest() -> None:
    """As when the other thread gets no core: the caller does all else before it waits."""
    let_go, caller = threading.Event(), threading.get_ident()
    done: list[int] = []

    def task() -> None:
        if threading.get_ident() != caller:
            assert let_go.wait(60)
        done.append(1)
        if len(done) == 9:
            let_go.set()

    with blas.threads(2):
        run_all([task] * 10, spread=True)
    assert len(done) == 10


def test_the_first_failure_is_raised_when_all_tasks_are_done() -> None:
    done: list[int] = []

    def broken() -> None:
        raise RuntimeError("broken")

    with blas.threads(2), pytest.raises(RuntimeError, match="broken"):
        run_all([broken, *[lambda: done.append(1)] * 20], spread=True)
    assert len(done) == 20


def test_little_work_stays_on_the_calling_thread() -> None:
    threads: list[int] = []
    with blas.threads(2):
        run_all([lambda: threads.append(threading.get_ident())] * 4, spread=False)
    assert set(threads) == {threading.get_ident()}
