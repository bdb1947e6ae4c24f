"""The outermost layer of every request: its id, its log line, and the answer when we are wrong."""

import time
from collections.abc import Iterable, Mapping
from uuid import uuid4

import structlog
from attrs import define, field
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from agentcache.adapters.http.errors import answer_error

_log: structlog.stdlib.BoundLogger = structlog.get_logger("agentcache.http")
CLIENT_GONE = 499  # as nginx logs it; nobody is there to receive a status
_HEADERS = "agentcache.headers"
_SEND = "agentcache.send"
_ALWAYS = {  # nothing here is a page, and nothing may be taken for one, framed or kept by a proxy
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def add_headers(scope: Scope, headers: Mapping[str, str]) -> None:
    """Send `headers` with the answer to this request, whoever makes it."""
    scope.setdefault(_HEADERS, {}).update(headers)


def straight(scope: Scope, send: Send) -> Send:
    """For what comes after the start of an answer: a `send` past all layers between, for which that
    was all they had to see.
    """
    found: Send = scope.get(_SEND, send)
    return found


def outermost(app: ASGIApp) -> ASGIApp:
    """`app` with nothing between the server and what `straight` finds, not even its framework."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        scope[_SEND] = send
        await app(scope, receive, send)

    return call


@define(eq=False)
class RequestScope:
    """ASGI middleware that no error leaves; of what clients wrote, only paths are logged."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault(_SEND, send)
        answer = _Answer(send, f"req_{uuid4().hex}", scope.setdefault(_HEADERS, {}))
        with bound_contextvars(request=answer.request):
            try:
                await self.app(scope, receive, answer.send)
            except ClientDisconnect:
                answer.status = CLIENT_GONE
            except Exception as error:
                response = await answer_error(Request(scope), error)
                if answer.status is None:  # else all that is left is to cut the answer short
                    await response(scope, receive, answer.send)
            finally:
                answer.log(scope)


@define(eq=False)
class _Answer:
    """What is sent to the client, tagged with the request's id and watched for the log."""

    _send: Send
    request: str
    _added: Mapping[str, str]
    status: int | None = None
    _started: float = field(factory=time.monotonic, init=False)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": self._headers(message.get("headers", ()))}
        await self._send(message)

    def _headers(self, given: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """What the answer says of itself wins over what is always said."""
        found = dict(given)
        wanted = {**_ALWAYS, **self._added, "x-request-id": self.request}
        more = ((name.encode(), value.encode("latin-1")) for name, value in wanted.items())
        return [*given, *((name, value) for name, value in more if name not in found)]

    def log(self, scope: Scope) -> None:
        quiet = scope["path"].startswith(("/health", "/metrics"))
        (_log.debug if quiet else _log.info)(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=self.status,
            seconds=round(time.monotonic() - self._started, 4),
        )
