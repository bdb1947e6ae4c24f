"""agentcache inside a FastAPI application: its HTTP API under /llm, its agents in one's own code.

python examples/embed_fastapi.py [--port PORT]       (AGENTCACHE_MODEL and AGENTCACHE_HOME choose)
"""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse

import agentcache


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with agentcache.open_async() as cache:
        app.state.cache = cache
        app.mount("/llm", agentcache.asgi(cache))  # OpenAI clients: base_url=".../llm/v1"
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/agents/{name}")
async def tell(name: str, text: str) -> StreamingResponse:
    try:
        stream = app.state.cache.agent(name).stream(text, max_tokens=20)
    except agentcache.errors.InvalidRequest as error:
        raise HTTPException(422, str(error)) from error

    async def pieces() -> AsyncIterator[str]:
        async with stream:  # a client that goes away cancels the turn
            async for piece in stream:
                yield piece

    return StreamingResponse(pieces(), media_type="text/plain")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, default=8000)
    uvicorn.run(app, host="127.0.0.1", port=options.parse_args().port)
