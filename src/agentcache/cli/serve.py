"""agentcache serve: the HTTP server."""

import asyncio
import socket
from typing import TYPE_CHECKING

import click

from agentcache.cli.options import with_settings
from agentcache.settings import Settings

if TYPE_CHECKING:
    from agentcache.adapters.http.server import HttpServer
    from agentcache.container import Container


@click.command()
@with_settings
def serve(settings: Settings) -> None:
    """Serve agents over HTTP, with memory that outlives the process.

    Options can also be set as AGENTCACHE_<NAME> in the environment, or in a TOML file.
    """
    from agentcache.adapters.http.server import listen
    from agentcache.cli import logs
    from agentcache.cli.running import running

    logs.configure(settings.log_format, settings.log_level)
    with listen(settings.host, settings.port) as listener, running(settings) as container:
        asyncio.run(_serve(_server(settings, container, listener), container))


async def _serve(server: "HttpServer", container: "Container") -> None:
    """Answer probes at once, and turns as soon as the model is loaded."""
    from agentcache.adapters.http.server import url_of

    serving = asyncio.create_task(server.run())
    opened = asyncio.create_task(asyncio.to_thread(container.loop().wait_open))
    await asyncio.wait((serving, opened), return_when=asyncio.FIRST_COMPLETED)
    if opened.done():
        if opened.exception() is None:
            url = url_of(server.listener)
            container.home().announce(url)
            click.echo(f"agentcache is ready on {url}", err=True)
        else:
            server.stop()
    await serving
    await opened


def _server(settings: Settings, container: "Container", listener: socket.socket) -> "HttpServer":
    from agentcache.adapters.http.app import create_app
    from agentcache.adapters.http.edge import Edge
    from agentcache.adapters.http.server import HttpServer

    edge = Edge(container.service(), settings.max_body)
    app = create_app(edge, container.telemetry())
    return HttpServer(app, edge, listener, settings.shutdown_timeout)
