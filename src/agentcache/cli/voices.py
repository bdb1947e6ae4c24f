"""Whom a chat talks to: a server that owns the home, or the service in this very process."""

import http.client
import json
import os
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urlsplit

from attrs import frozen

from agentcache.cli.keys import ONE_KEY
from agentcache.domain.errors import AgentCacheError

if TYPE_CHECKING:
    from agentcache.library.synchronous import Agent

_SILENCE = 120.0  # seconds; a server that is well says something every 15


@frozen
class Cost:
    """What an answer cost: of `prompt` tokens, `cached` were not computed again."""

    prompt: int
    cached: int


@frozen(str=False)
class Refused(AgentCacheError):
    """The server at `address` did not answer; `problem` is in its words, `status` its status."""

    address: str
    problem: str
    status: int | None = None

    def __str__(self) -> str:
        return f"{self.address}: {self.problem}"


class Voice(Protocol):
    """Answers as one agent, who knows what was said before."""

    def answer(self, text: str) -> Generator[str | Cost]:
        """The answer piece by piece, then its cost. Raises AgentCacheError.

        Closing the iterator stops the answer, which the agent does not remember then.
        """
        ...


@frozen
class Local:
    """An agent of this process."""

    agent: "Agent"
    temperature: float
    max_tokens: int | None

    def answer(self, text: str) -> Generator[str | Cost]:
        """See Voice."""
        with self.agent.stream(
            text, temperature=self.temperature, max_tokens=self.max_tokens
        ) as stream:
            yield from stream
            answer = stream.answer
        yield Cost(answer.usage.prompt_tokens, answer.cache.cached_tokens)


@frozen
class Remote:
    """The server at `address`, as the agent `name`."""

    address: str
    name: str
    temperature: float
    max_tokens: int | None

    def answer(self, text: str) -> Generator[str | Cost]:
        """See Voice."""
        body = {
            "model": self._model(),
            "messages": [*self._history(), {"role": "user", "content": text}],
            "temperature": self.temperature,
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

    def _history(self) -> list[object]:
        """What was said, as the server remembers it; nothing for an agent that is new."""
        path = f"/v1/agents/{quote(self.name, safe='')}?messages=true"
        try:
            with self._response("GET", path, None) as response:
                return list(json.load(response)["history"])
        except Refused as refused:
            if refused.status != 404:
                raise
            return []
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            raise Refused(self.address, f"it does not tell what was said: {error}") from None

    def _response(self, method: str, path: str, body: object) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=_SILENCE)
        headers = {
            "x-agent-id": self.name.encode(),
            "content-type": b"application/json",
            "connection": b"close",  # closing the response closes all: the server stops
        }
        if key := os.environ.get(ONE_KEY):
            headers["authorization"] = f"Bearer {key}".encode()
        connection.request(method, path, json.dumps(body).encode() if body else None, headers)
        response = connection.getresponse()
        if response.status != 200:
            with response:
                raise Refused(self.address, _problem(response), response.status)
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
