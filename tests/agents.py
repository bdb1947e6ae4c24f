"""Agents as a server's clients: conversations over HTTP, and what answers cost."""

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any

import httpx
from attrs import define, evolve, field, frozen

from tests.servers import SECONDS, Server

Message = dict[str, str]
_WORDS = (
    "anchor basil copper delta ember fjord garnet harbour indigo juniper kelp lagoon maple nectar "
    "opal pepper quartz raven saffron timber umber violet willow yarrow zinc"
)


class CutOff(Exception):
    """The server was gone before the answer was complete."""


@frozen
class Answer:
    """A complete answer. `prompt` and `completion` are tokens, as the server counts them."""

    text: str
    finish: str
    prompt: int
    completion: int
    cached: int
    tier: str
    miss: str | None

    @property
    def tokens(self) -> int:
        """Of prompt and answer together."""
        return self.prompt + self.completion


@define
class Stream:
    """An answer that is coming. Iterate over its pieces; `answer` is there after the last one.

    Who stops iterating may go on later. Iterating raises CutOff when the server goes away.
    """

    headers: Mapping[str, str]
    _chunks: Iterator[dict[str, Any]]
    answer: Answer | None = field(default=None, init=False)
    _text: str = field(default="", init=False)
    _finish: str = field(default="", init=False)
    _usage: dict[str, int] = field(factory=dict, init=False)

    def __iter__(self) -> Iterator[str]:
        for chunk in self._chunks:
            self._usage = chunk.get("usage") or self._usage
            for choice in chunk["choices"]:
                self._finish = choice["finish_reason"] or self._finish
                if piece := choice["delta"].get("content"):
                    self._text += piece
                    yield piece
        self.answer = Answer(
            self._text,
            self._finish,
            self._usage["prompt_tokens"],
            self._usage["completion_tokens"],
            int(self.headers["x-agentcache-cached-tokens"]),
            self.headers["x-agentcache-tier"],
            self.headers.get("x-agentcache-miss"),
        )

    def first(self, pieces: int) -> None:
        """Return after so many pieces, while there are more to come."""
        for _, _piece in zip(range(pieces), self, strict=False):
            pass
        assert self.answer is None, "the answer is over already"


@define
class Agent:
    """A conversation as its client keeps it: only complete answers go on record."""

    name: str
    messages: list[Message]
    answers: list[Answer] = field(factory=list)

    @classmethod
    def with_notes(cls, name: str, words: int = 80) -> "Agent":
        """An agent whose system prompt is like nobody else's: some seven letters a word."""
        notes = " ".join(random.Random(name).choices(_WORDS.split(), k=words))
        told = f"{name} is who you are. Your notes: {notes}."
        return cls(name, [{"role": "system", "content": told}])

    def twin(self) -> "Agent":
        """The same conversation so far, for another server."""
        return evolve(self, messages=list(self.messages), answers=list(self.answers))

    def ask(self, server: Server, question: str, tokens: int = 8) -> Answer:
        """Ask, and take the answer on record. Raises CutOff."""
        with self.asking(server, question, tokens) as stream:
            for _ in stream:
                pass
        return self.answers[-1]

    def ask_again(self, server: Server, tokens: int = 8) -> Answer:
        """Ask the last question once more, as if it had never been answered."""
        del self.messages[-1]
        question = self.messages.pop()["content"]
        return self.ask(server, question, tokens)

    @contextmanager
    def asking(self, server: Server, question: str, tokens: int) -> Iterator[Stream]:
        """Ask for an answer of at most `tokens` tokens, greedily; it stops when the block ends."""
        asked = [*self.messages, {"role": "user", "content": question}]
        body = {
            "model": server.client.get("/v1/models").json()["data"][0]["id"],
            "messages": asked,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        headers = {"x-agent-id": self.name}
        with server.client.stream(
            "POST", "/v1/chat/completions", json=body, headers=headers
        ) as response:
            assert response.status_code == 200, response.read().decode()
            stream = Stream(response.headers, _chunks(response))
            yield stream
        if stream.answer is not None:
            self.messages = [*asked, {"role": "assistant", "content": stream.answer.text}]
            self.answers.append(stream.answer)


def at_once(server: Server, agents: Sequence[Agent], question: str) -> list[Answer]:
    """Let all agents ask at the same moment, `{n}` being their number; their answers in order."""
    barrier = Barrier(len(agents))

    def ask(number: int, agent: Agent) -> Answer:
        barrier.wait(SECONDS)
        return agent.ask(server, question.format(n=number))

    with ThreadPoolExecutor(len(agents)) as pool:
        return list(pool.map(ask, range(len(agents)), agents))


def passed(server: Server) -> int:
    """Tokens that were passed to the model since the server started."""
    return int(server.metric("model_tokens_total"))


def prefilled(answers: Iterable[Answer], passed_in_all: int) -> int:
    """How many of the passed tokens were of prompts: each decode step passes one token."""
    return passed_in_all - sum(answer.completion - 1 for answer in answers)


def recomputed(server: Server, agent: Agent, question: str = "And now?") -> int:
    """Ask alone: how many tokens of its last turn were passed to the model again."""
    last, before = agent.answers[-1], passed(server)
    answer = agent.ask(server, question)
    restored = answer.prompt - prefilled([answer], passed(server) - before)
    return last.tokens - restored


def share_served(server: Server, agent: Agent, question: str = "And now?") -> float:
    """Ask alone: the share of the tokens of its last turn that were not passed again."""
    last = agent.answers[-1]
    return 1 - recomputed(server, agent, question) / last.tokens


def _chunks(response: httpx.Response) -> Iterator[dict[str, Any]]:
    try:
        for line in response.iter_lines():
            if line == "data: [DONE]":
                return
            if line.startswith("data: "):
                chunk = json.loads(line.removeprefix("data: "))
                assert "error" not in chunk, chunk
                yield chunk
    except httpx.TransportError as error:
        raise CutOff from error
    raise CutOff
