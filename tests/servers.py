"""agentcache as its users run it: commands and servers in processes of their own.

They inherit the environment, so that coverage, where it runs, measures them too; what a killed
process did is lost to it.
"""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
from attrs import frozen

COMMAND = Path(sys.executable).with_name("agentcache")
SECONDS = 180.0  # the machine may be busy; nothing takes this long on an idle one
_READY = re.compile(r"^agentcache is ready on (http://\S+)$", re.MULTILINE)


@frozen
class Server:
    """A server process that takes turns, and a client for it."""

    process: "subprocess.Popen[bytes]"
    client: httpx.Client
    log: Path

    @property
    def url(self) -> str:
        """Where it listens."""
        return str(self.client.base_url).rstrip("/")

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def metric(self, name: str, **labels: str) -> float:
        """The value of one series of its metrics; LookupError when there is no such series."""
        label = ",".join(f'{key}="{value}"' for key, value in labels.items())
        series = f"agentcache_{name}{{{label}}}" if label else f"agentcache_{name}"
        text = self.client.get("/metrics").raise_for_status().text
        found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
        if found is None:
            raise LookupError(f"there is no {series} in\n{text}")
        return float(found[1])

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(SECONDS)

    def stop(self) -> int:
        """Ask it to stop; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS)


@contextmanager
def served(home: Path, model: Path, *options: str) -> Iterator[Server]:
    """A server of `model` with the memory in `home`, on a port of its own choosing.

    Its rows are kept as they are, so that answers can be compared, unless `options` say otherwise.
    What it says is in the file `<home>.log`. Whatever happens, it is gone at the end.
    """
    arguments = ("serve", "--home", home, "--model", model, "--port", "0", "--threads", "1")
    if "--codec" not in options:
        options = ("--codec", "native", *options)
    log = home.with_name(f"{home.name}.log")
    with log.open("wb") as told:
        process = subprocess.Popen(
            [str(COMMAND), *map(str, arguments), *options],
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=told,
            start_new_session=True,  # a process group by itself
        )
    try:
        url = _address(process, log)
        with httpx.Client(base_url=url, timeout=SECONDS, trust_env=False) as client:
            until(lambda: client.get("/health/ready").is_success)
            yield Server(process, client, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def run(*arguments: object, said: str = "") -> "subprocess.CompletedProcess[str]":
    """Run an agentcache command to its end, `said` being its input."""
    return subprocess.run(
        [str(COMMAND), *map(str, arguments)],
        input=said,
        capture_output=True,
        encoding="utf-8",
        timeout=SECONDS,
        check=False,
    )


def until(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Return as soon as `condition` holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds} seconds"
        time.sleep(0.01)


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """Where the server listens, in its own words."""
    deadline = time.monotonic() + SECONDS
    while (found := _READY.search(log.read_text())) is None:
        assert process.poll() is None, f"the server ended:\n{log.read_text()}"
        assert time.monotonic() < deadline, f"the server does not start:\n{log.read_text()}"
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    return found[1]
