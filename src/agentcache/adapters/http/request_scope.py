"""The outermost layer of every request: its id, its log line, and the answer when we are wrong."""

import time
from uuid import uuid4

import structlog
from attrs import define, field
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.errors import answer_error

_log: structlog.stdlib.BoundLogger = structlog.get_logger("agentcache.http")
CLIENT_GONE = 499  # as nginx logs it; nobody is there to receive a status


@define(eq=False)
class RequestScope:
    """ASGI middleware that no error leaves; of what clients wrote, only paths are logged."""

    app: ASGIApp
    edge: Edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send, f"req_{uuid4().hex}")
        with self.edge.attending(), bound_contextvars(request=answer.request):
            try:
                await self.app(scope, receive, answer.send)
            except ClientDisconnect:
                answer.status = CLIENT_GONE
            except Exception as error:
                response = await answer_error(None, error)
                if answer.status is None:  # else all that is left is to cut the answer short
                    await response(scope, receive, answer.send)
            finally:
                answer.log(scope)


@define(eq=False)
class _Answer:
    """What is sent to the client, tagged with the request's id and watched for the log."""

    _send: Send
    request: str
    status: int | None = None
    _started: float = field(factory=time.monotonic, init=False)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self.request.encode())]
            message = {**message, "headers": headers}
        await self._send(message)

    def log(self, scope: Scope) -> None:
        quiet = scope["path"].startswith(("/health", "/metrics"))
        (_log.debug if quiet else _log.info)(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=self.status,
            seconds=round(time.monotonic() - self._started, 4),
        )
