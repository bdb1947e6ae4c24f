"""The HTTP application around a cache that is open, for other ASGI servers to mount."""

from starlette.applications import Starlette

from agentcache.adapters.http.app import create_app
from agentcache.adapters.http.edge import Edge
from agentcache.library.asynchronous import AsyncAgentCache
from agentcache.library.synchronous import AgentCache
from agentcache.settings import Settings


def asgi(cache: AgentCache | AsyncAgentCache, max_body: int | None = None) -> Starlette:
    """The application, ready to be mounted under any prefix; it starts and stops nothing itself.

    The cache has to be open while the host serves: open and close it in the host's lifespan. Who
    may come in is the host's business. `max_body` is in bytes. Turns of HTTP clients and of the
    library share agents; a client sends the whole conversation, which becomes the agent's.
    """
    caps = Settings()
    edge = Edge(cache.service, max_body or caps.max_body, max_messages=caps.max_messages)
    return create_app(edge)
