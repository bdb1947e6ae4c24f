"""Whom a chat talks to: a server that owns the home, or the service in this very process."""

import asyncio
import http.client
import json
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from attrs import frozen

from agentcache.domain.conversation import Conversation, Message
from agentcache.domain.errors import AgentCacheError
from agentcache.domain.request import Identity, Sampling

if TYPE_CHECKING:
    from agentcache.domain.events import Delta, Ended
    from agentcache.service import Service

_SILENCE = 120.0  # seconds; a server that is well says something every 15


@frozen
class Cost:
    """What an answer cost: of `prompt` tokens, `cached` were not computed again."""

    prompt: int
    cached: int


@frozen(str=False)
class Refused(AgentCacheError):
    """The server at `address` did not answer; `problem` is in its words."""

    address: str
    problem: str

    def __str__(self) -> str:
        return f"{self.address}: {self.problem}"


class Voice(Protocol):
    """Answers a conversation."""

    def answer(self, messages: Sequence[Message]) -> Generator[str | Cost]:
        """The answer piece by piece, then its cost. Raises AgentCacheError.

        Closing the iterator stops the answer.
        """
        ...


@frozen
class Local:
    """The service of this process, as the agent `name`."""

    service: "Service"
    name: str
    sampling: Sampling
    max_tokens: int | None
    runner: asyncio.Runner

    def answer(self, messages: Sequence[Message]) -> Generator[str | Cost]:
        """See Voice. The event loop runs only while there is something to wait for."""
        from agentcache.service import Ask

        identity = Identity(self.name, exclusive=True)
        ask = Ask(identity, Conversation(tuple(messages)), self.sampling, self.max_tokens)
        turn = self.runner.run(self.service.begin(ask))
        try:
            events = aiter(turn)
            while (event := self.runner.run(_next(events))) is not None:
                yield _said(event)
        finally:
            self.runner.run(turn.cancel())


async def _next(events: "AsyncIterator[Delta | Ended]") -> "Delta | Ended | None":
    return await anext(events, None)


def _said(event: "Delta | Ended") -> str | Cost:
    from agentcache.domain.events import Delta

    return event.text if isinstance(event, Delta) else Cost(event.prompt, event.cached)


@frozen
class Remote:
    """The server at `address`, as the agent `name`."""

    address: str
    name: str
    sampling: Sampling
    max_tokens: int | None

    def answer(self, messages: Sequence[Message]) -> Generator[str | Cost]:
        """See Voice."""
        body = {
            "model": self._model(),
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "temperature": self.sampling.temperature,
            "max_tokens": self.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            with self._response("POST", "/v1/chat/completions", body) as response:
                for line in response:
                    if line.startswith(b"data: {"):
                        yield from self._pieces(json.loads(line[6:]))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Refused(self.address, f"the connection broke: {error}") from None

    def _model(self) -> str:
        try:
            with self._response("GET", "/v1/models", None) as response:
                return str(json.load(response)["data"][0]["id"])
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            raise Refused(self.address, f"it does not tell its model: {error}") from None

    def _response(self, method: str, path: str, body: object) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=_SILENCE)
        headers = {
            "x-agent-id": self.name.encode(),
            "content-type": b"application/json",
            "connection": b"close",  # closing the response closes all: the server stops
        }
        connection.request(method, path, json.dumps(body).encode() if body else None, headers)
        response = connection.getresponse()
        if response.status != 200:
            with response:
                raise Refused(self.address, _problem(response))
        return response

    def _pieces(self, chunk: dict[str, Any]) -> Iterator[str | Cost]:
        if "error" in chunk:
            raise Refused(self.address, chunk["error"]["message"])
        for choice in chunk["choices"]:
            if text := choice["delta"].get("content"):
                yield text
        if usage := chunk.get("usage"):
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            yield Cost(usage["prompt_tokens"], cached)


def _problem(response: http.client.HTTPResponse) -> str:
    try:
        return str(json.load(response)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"it answers {response.status} {response.reason}"
