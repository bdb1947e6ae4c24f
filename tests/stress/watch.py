"""What a server process takes: memory, files, threads, CPU time; asked of the system, not of it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import psutil
from attrs import define, field, frozen

from tests.servers import SECONDS, Server

LATE_WORKERS = 3  # threads that a pool may start when it is busy as never before


@frozen
class Sample:
    """At `at` seconds of a clock: resident bytes, open files (sockets too), threads."""

    at: float
    resident: int
    files: int
    threads: int


@define(eq=False)
class Watch:
    """Looks at a process now and then."""

    process: psutil.Process
    samples: list[Sample] = field(factory=list)

    @classmethod
    def of(cls, server: Server) -> "Watch":
        """A watch of the server's process."""
        return cls(psutil.Process(server.process.pid))

    def look(self) -> Sample:
        """Take a sample."""
        with self.process.oneshot():
            sample = Sample(
                time.monotonic(),
                self.process.memory_info().rss,
                self.process.num_fds(),
                self.process.num_threads(),
            )
        self.samples.append(sample)
        return sample

    @property
    def cpu(self) -> float:
        """Seconds of processor time that it has used so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    async def uses(self, seconds: float) -> None:
        """Return when it has used so many seconds of processor time more."""
        until, deadline = self.cpu + seconds, time.monotonic() + SECONDS + 20 * seconds
        while self.cpu < until:
            assert time.monotonic() < deadline, "the process does nothing"
            await asyncio.sleep(0.02)

    async def until(self, condition: Callable[[Sample], bool]) -> None:
        """Return as soon as `condition` holds of it."""
        await until(lambda: condition(self.look()))

    @property
    def most(self) -> Sample:
        """The most of everything that was seen."""
        return Sample(
            self.samples[-1].at,
            max(one.resident for one in self.samples),
            max(one.files for one in self.samples),
            max(one.threads for one in self.samples),
        )


@asynccontextmanager
async def watching(server: Server, every: float = 0.25) -> AsyncIterator[Watch]:
    """Look at the server every so many seconds while the block runs, and at its end."""
    watch = Watch.of(server)

    async def go_on() -> None:
        while True:
            watch.look()
            await asyncio.sleep(every)

    task = asyncio.create_task(go_on())
    try:
        yield watch
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        watch.look()


async def until(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Return as soon as `condition` holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds} seconds"
        await asyncio.sleep(0.05)


async def rests(server: Server) -> None:
    """Return when no turn waits or runs on the server any more."""
    await until(lambda: server.metric("queued") == 0 and server.metric("running") == 0)
