"""The ASGI application: a literal list of routes around a service."""

from collections.abc import Awaitable, Callable
from typing import Protocol, Self, runtime_checkable

from attrs import frozen
from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agentcache.adapters.http.admin import Admin
from agentcache.adapters.http.agents import Agents
from agentcache.adapters.http.anthropic_messages import AnthropicMessages
from agentcache.adapters.http.completions import Completions
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.errors import TABLE, answer_error, answer_http_error
from agentcache.adapters.http.gate import Counted, Gate
from agentcache.adapters.http.health import HealthChecks
from agentcache.adapters.http.models import Models
from agentcache.adapters.http.openai_chat import OpenAIChat
from agentcache.adapters.http.openapi import Description
from agentcache.adapters.http.request_scope import RequestScope
from agentcache.adapters.http.responses import Responses
from agentcache.ports.keyring import Keyring
from agentcache.settings import Settings, words


class _AnyText(Convertor[str]):
    """What is left of a path, line feeds among it, which `path` stops at."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("any", _AnyText())


@runtime_checkable
class Exposition(Protocol):
    """Metrics in some text format."""

    def exposition(self) -> tuple[bytes, str]:
        """The metrics as they are now, and their media type."""
        ...


@frozen
class Door:
    """Who may come in: see `Gate`; and which `origins` browsers may come from (exact ones)."""

    keyring: Keyring | None = None
    hosts: frozenset[str] = frozenset()
    origins: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Settings, keyring: Keyring | None) -> Self:
        """The door for whoever `keyring` knows, from the hosts and origins in the settings."""
        hosts = frozenset(word.lower() for word in words(settings.allowed_hosts))
        return cls(keyring, hosts, words(settings.cors_origins))

    def middleware(self, counted: Counted) -> list[Middleware]:
        """From the outside in. What a browser asks before a request carries no key."""
        across = Middleware(
            CORSMiddleware,
            allow_origins=self.origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
        gate = Middleware(Gate, self.keyring, self.hosts, counted)
        return [Middleware(RequestScope), *([across] if self.origins else []), gate]


def create_app(edge: Edge, metrics: object = None, door: Door | None = None) -> Starlette:
    """The application, ready to be served or mounted; it starts and stops nothing itself.

    It has `/metrics` if `metrics` are an Exposition.
    """
    chat, models, health = OpenAIChat(edge), Models(edge), HealthChecks(edge)
    completions, responses = Completions(edge), Responses(edge)
    messages, agents, admin = AnthropicMessages(edge), Agents(edge), Admin(edge)
    routes = [
        Route("/v1/chat/completions", chat.create, methods=["POST"]),
        Route("/v1/completions", completions.create, methods=["POST"]),
        Route("/v1/responses", responses.create, methods=["POST"]),
        Route("/v1/responses/{id}", responses.one, methods=["GET", "DELETE"]),
        Route("/v1/messages", messages.create, methods=["POST"]),
        Route("/v1/messages/count_tokens", messages.count_tokens, methods=["POST"]),
        Route("/v1/models", models.list),
        Route("/v1/models/{model:path}", models.get),
        Route("/v1/agents", agents.all, methods=["GET", "POST"]),
        Route("/v1/agents/{name:any}", agents.one, methods=["GET", "POST", "DELETE"]),
        Route("/v1/admin/model", admin.swap, methods=["POST"]),
        Route("/health", health.ready),
        Route("/health/live", health.live),
        Route("/health/ready", health.ready),
        Route("/health/startup", health.startup),
    ]
    if isinstance(metrics, Exposition):
        routes.append(Route("/metrics", _metrics(metrics)))
    description = Description(routes)
    routes.append(Route("/openapi.json", description.get))
    handlers = {HTTPException: answer_http_error} | dict.fromkeys(TABLE, answer_error)
    middleware = (door or Door()).middleware(edge.counted)
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


def _metrics(metrics: Exposition) -> Callable[[Request], Awaitable[Response]]:
    async def get(_request: Request) -> Response:
        body, media_type = metrics.exposition()
        return Response(body, media_type=media_type)

    return get
