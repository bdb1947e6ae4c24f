"""agentcache serve: the HTTP server."""

import asyncio
import signal
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

import click
from attrs import evolve

from agentcache.cli.keys import keyring
from agentcache.cli.options import with_settings
from agentcache.settings import Settings

if TYPE_CHECKING:
    from agentcache.adapters.http.app import Door
    from agentcache.adapters.http.server import HttpServer
    from agentcache.container import Container

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@click.command()
@with_settings
def serve(settings: Settings) -> None:
    """Serve agents over HTTP, with memory that outlives the process.

    Options can also be set as AGENTCACHE_<NAME> in the environment, or in a TOML file.
    """
    import uvloop

    from agentcache.adapters.http.server import listen
    from agentcache.cli import logs
    from agentcache.cli.running import running

    logs.configure(settings.log_format, settings.log_level)
    _require_keys_for_others(settings)
    _end_well_on_signals()
    with (
        listen(settings.host, settings.port) as listener,
        running(settings) as container,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(_serve(_server(settings, container, listener), container))


async def _serve(server: "HttpServer", container: "Container") -> None:
    """Answer probes at once, and turns as soon as the model is loaded."""
    from agentcache.adapters.http.server import url_of

    serving = asyncio.create_task(server.run())
    opened = asyncio.wrap_future(container.loop().opened)
    await asyncio.wait((serving, opened), return_when=asyncio.FIRST_COMPLETED)
    if opened.done():
        if opened.exception() is None:
            url = url_of(server.listener)
            container.home().announce(url)
            click.echo(f"agentcache is ready on {url}", err=True)
        else:
            server.stop()
    await serving
    if opened.done():
        await opened


def _end_well_on_signals() -> None:
    """Until the server has its own way: a signal ends what is being fetched, a second one at once.

    Ending when asked to is no failure.
    """

    def end(_number: int, _frame: object) -> None:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        raise SystemExit(0)

    for number in _SIGNALS:
        signal.signal(number, end)


def _server(settings: Settings, container: "Container", listener: socket.socket) -> "HttpServer":
    from agentcache.adapters.http.app import create_app
    from agentcache.adapters.http.edge import Edge
    from agentcache.adapters.http.server import HttpServer

    edge = Edge.of(container.service(), settings)
    app = create_app(edge, container.telemetry(), _door(settings))
    return HttpServer(app, edge, listener, settings.shutdown_timeout)


def _door(settings: Settings) -> "Door":
    """Who may come in. Where only this machine can connect, only its own names are answered to."""
    from agentcache.adapters.http.app import Door
    from agentcache.adapters.http.gate import LOOPBACK

    door = Door.of(settings, keyring(settings))
    return evolve(door, hosts=door.hosts | LOOPBACK) if _is_loopback(settings.host) else door


def _require_keys_for_others(settings: Settings) -> None:
    if not _is_loopback(settings.host) and keyring(settings) is None:
        raise click.UsageError(
            f"{settings.host} can be reached by others, and there are no API keys: add one with "
            "`agentcache keys add TENANT`, or listen on 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
