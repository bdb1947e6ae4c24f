"""Serving the application: one socket, uvicorn on it, and an orderly stop."""

import asyncio
import errno
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import structlog
import uvicorn
from attrs import define, field, frozen
from starlette.types import ASGIApp

from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.protocol import HttpProtocol
from agentcache.adapters.http.request_scope import outermost
from agentcache.domain.errors import AgentCacheError

_log: structlog.stdlib.BoundLogger = structlog.get_logger("agentcache.http")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_TICK = 1.0  # seconds
_CLOSING = 2  # seconds for connections whose turns were cancelled


@frozen(str=False)
class CannotListen(AgentCacheError):
    """The address cannot be listened on."""

    host: str
    port: int
    problem: str

    def __str__(self) -> str:
        return f"cannot listen on {self.host}:{self.port}: {self.problem}"


def listen(host: str, port: int) -> socket.socket:
    """A bound, listening socket. Raises CannotListen."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        problem = "another program does; choose another --port" if taken else error.strerror
        raise CannotListen(host, port, problem or str(error)) from None


def url_of(listener: socket.socket) -> str:
    """Where clients on this machine reach `listener`."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Uvicorn(uvicorn.Server):
    """Leaves signals to us: its own handlers raise them again when all is done.

    It wakes once a second, for the date that answers carry, and when it shall leave; left to itself
    it would look ten times a second whether it shall, and take that time from tokens.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        """Come to an end. For the event loop's thread."""
        self.should_exit = True
        self._leaving.set()

    async def main_loop(self) -> None:
        """See uvicorn.Server."""
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(_TICK):
                    await self._leaving.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See uvicorn.Server."""
        yield


@define(eq=False)
class HttpServer:
    """Serves `app` on `listener` until SIGTERM, SIGINT or `stop`; drains within `patience` s."""

    app: ASGIApp
    edge: Edge
    listener: socket.socket
    patience: float = 30.0
    _server: _Uvicorn = field(init=False)
    _stopping: asyncio.Task[None] | None = field(default=None, init=False)

    @_server.default
    def _not_started(self) -> _Uvicorn:
        return _Uvicorn(
            uvicorn.Config(
                outermost(self.app),
                http=HttpProtocol,
                lifespan="off",
                ws="none",  # whatever else is installed
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_CLOSING,
            )
        )

    async def run(self, on_ready: Callable[[str], None] = lambda _url: None) -> None:
        """Serve; `on_ready` is told the address, from when on connections are taken."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        try:
            on_ready(url_of(self.listener))
            await self._server.serve(sockets=[self.listener])
        finally:
            self._release_signals()

    def stop(self) -> None:
        """Take no more turns, and return from `run` when the last one is answered."""
        if self._stopping is None:
            _log.info("stopping", patience=self.patience)
            self._stopping = asyncio.get_running_loop().create_task(self._drain())

    def _on_signal(self) -> None:
        """The first signal drains; a second one meets the system's own way, which is to die."""
        self._release_signals()
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        self.stop()

    def _release_signals(self) -> None:
        for number in _SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)

    async def _drain(self) -> None:
        try:
            await self.edge.drain(self.patience)
        finally:
            self._server.leave()
