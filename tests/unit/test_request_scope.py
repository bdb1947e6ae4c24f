"""The way of a stream's body from an endpoint to the server."""

import pytest
from starlette.types import Message, Receive, Scope, Send

from agentcache.adapters.http.request_scope import RequestScope, outermost, straight

pytestmark = pytest.mark.anyio
BODY: Message = {"type": "http.response.body", "body": b"more", "more_body": True}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def _nothing() -> Message:
    raise AssertionError("nobody listens here")


async def test_a_body_passes_no_layer_but_the_start_of_an_answer_passes_all() -> None:
    sent: list[Message] = []
    seen: list[str] = []

    async def endpoint(scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await straight(scope, send)(BODY)

    async def framework(scope: Scope, receive: Receive, send: Send) -> None:
        async def watched(message: Message) -> None:
            seen.append(message["type"])
            await send(message)

        await RequestScope(endpoint)(scope, receive, watched)

    async def server(message: Message) -> None:
        sent.append(message)

    await outermost(framework)({"type": "http", "method": "GET", "path": "/"}, _nothing, server)
    assert seen == ["http.response.start"]
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
