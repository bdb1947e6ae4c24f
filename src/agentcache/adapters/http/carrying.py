"""Agents as files over HTTP: out as a download, in as a request body."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import StreamingResponse

from agentcache.adapters.disk.files import room_for
from agentcache.adapters.http.body import chunks
from agentcache.adapters.http.compression import coding_of
from agentcache.adapters.http.query import flag
from agentcache.service import Service

_PIECE = 1 << 20
_SPARE = 64 << 20  # bytes of the disk that no body may take


async def exported(service: Service, tenant: str, name: str) -> StreamingResponse:
    """The agent as a file, which is made before the first byte is sent."""
    with _folder() as folder:
        path = folder / "agent"
        nbytes = await asyncio.to_thread(service.export, tenant, name, path)
        file = path.open("rb")  # it stays readable without its name, and leaves nothing behind
    headers = {"content-length": str(nbytes)}
    return StreamingResponse(_pieces(file), headers=headers, media_type="application/octet-stream")


async def imported(service: Service, tenant: str, name: str, request: Request) -> None:
    """Take the body in as the agent `name`, once all of it is there and adds up."""
    if coding_of(request.headers.get("content-encoding", "")):
        raise HTTPException(415, "agents' files are sent as they were exported")
    replace = flag(request, "replace")
    with _folder() as folder:
        path = folder / "agent"
        limit = max(0, shutil.disk_usage(folder).free - _SPARE)
        with room_for(limit), path.open("xb") as file:
            async for chunk in chunks(request, limit):
                await asyncio.to_thread(file.write, chunk)
        await asyncio.to_thread(service.take_in, tenant, path, name, replace)


async def _pieces(file: BinaryIO) -> AsyncIterator[bytes]:
    with file:
        while piece := await asyncio.to_thread(file.read, _PIECE):
            yield piece


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=f"agentcache-{os.getpid()}-") as name:
        yield Path(name)
