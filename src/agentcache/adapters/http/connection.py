"""Noticing at once that a client went away, whatever the request is waiting for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect
from starlette.types import Receive


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[None]:
    """Cancel the block when the client goes away, and raise ClientDisconnect instead.

    The body must have been read. Cancellation comes once, so that the block may await in `finally`.
    """
    block = asyncio.current_task()
    assert block is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        block.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
        if gone:
            await asyncio.sleep(0)  # the cancellation is on its way: let it arrive in here
    except asyncio.CancelledError:
        if not gone or block.uncancel() > 0:
            raise
        raise ClientDisconnect from None
    finally:
        watcher.cancel()
