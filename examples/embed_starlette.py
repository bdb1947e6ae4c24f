"""agentcache inside a Starlette application: its HTTP API under /llm, its agents in one's own code.

python examples/embed_starlette.py [--port PORT]     (AGENTCACHE_MODEL and AGENTCACHE_HOME choose)
"""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import agentcache


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with agentcache.open_async() as cache:
        app.state.cache = cache
        app.mount("/llm", agentcache.asgi(cache))  # OpenAI clients: base_url=".../llm/v1"
        yield


async def greet(request: Request) -> JSONResponse:
    agent = request.app.state.cache.agent("porter", system="You greet people by their name.")
    answer = await agent.say(f"I am {request.path_params['name']}.", max_tokens=20)
    return JSONResponse({"text": answer.text, "remembered": answer.cache.cached_tokens})


app = Starlette(routes=[Route("/greet/{name}", greet)], lifespan=lifespan)

if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, default=8000)
    uvicorn.run(app, host="127.0.0.1", port=options.parse_args().port)
