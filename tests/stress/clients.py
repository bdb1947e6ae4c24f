"""Clients of a server, many at once: conversations that stream or not, that end or break off."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

import httpx
from attrs import define, field

from tests.servers import SECONDS
from tests.stress.tally import CUT_OFF, LEFT, OK, REFUSED, UNAVAILABLE, Outcome, Tally

WORDS = ("anchor", "basil", "copper", "delta", "ember", "fjord", "garnet", "harbour", "indigo")


def notes(name: str, words: int) -> str:
    """Words that are always the same for a name, and other ones for another."""
    return " ".join(random.Random(name).choices(WORDS, k=words))


@define
class _Answer:
    """What has come of an answer so far."""

    pieces: list[str] = field(factory=list)
    first: float | None = None
    usage: dict[str, int] = field(factory=dict)
    problem: str = ""


@define(eq=False)
class Client:
    """An agent's conversation as its client keeps it: only complete answers go on record.

    `name` is sent as X-Agent-ID; None for a client that sends none. `known` is how many tokens its
    last answer and the prompt before it had. `fields` are sent with every request.
    """

    crowd: "Crowd"
    name: str | None
    words: int = 20
    fields: dict[str, object] = field(factory=dict, init=False)
    messages: list[dict[str, str]] = field(init=False)
    known: int = field(default=0, init=False)

    @messages.default
    def _begin(self) -> list[dict[str, str]]:
        who = self.name or f"nobody {id(self)}"
        return [{"role": "system", "content": f"You are {who}. {notes(who, self.words)}."}]

    def start_over(self) -> None:
        """Forget what was said; the system prompt stays."""
        del self.messages[1:]
        self.known = 0

    async def ask(
        self, text: str, tokens: int = 8, *, stream: bool = True, leave_after: float | None = None
    ) -> Outcome:
        """Ask once, greedily, and tally what came of it.

        With `leave_after`, the client goes away after so many seconds, if it is not answered then.
        Raises TimeoutError when the server leaves it without any end.
        """
        started = time.monotonic()
        try:
            async with asyncio.timeout(SECONDS if leave_after is None else leave_after):
                outcome = await self._ask(text, tokens, stream, started)
        except TimeoutError:
            if leave_after is None:
                raise
            outcome = Outcome(LEFT, time.monotonic() - started)
        self.crowd.tally.add(outcome)
        return outcome

    async def insist(self, text: str, tokens: int = 8, *, stream: bool = True) -> Outcome:
        """Ask, and ask again when told to, for as long as it takes."""
        while True:
            outcome = await self.ask(text, tokens, stream=stream)
            if outcome.status not in (REFUSED, UNAVAILABLE):
                return outcome
            await asyncio.sleep(outcome.waits)

    async def _ask(self, text: str, tokens: int, stream: bool, started: float) -> Outcome:
        asked = [*self.messages, {"role": "user", "content": text}]
        body = {
            "model": self.crowd.model,
            "messages": asked,
            "max_tokens": tokens,
            "temperature": 0,
        }
        body |= self.fields
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        answer, headers = _Answer(), {} if self.name is None else {"x-agent-id": self.name}
        try:
            async with self.crowd.http.stream(
                "POST", "/v1/chat/completions", json=body, headers=headers
            ) as response:
                await _read(response, answer, stream, started)
        except httpx.TimeoutException as error:
            raise TimeoutError from error
        except httpx.TransportError as error:
            return Outcome(CUT_OFF, time.monotonic() - started, problem=type(error).__name__)
        outcome = self._outcome(response, answer, time.monotonic() - started)
        if outcome.is_answer:
            self.messages = [*asked, {"role": "assistant", "content": outcome.text}]
            self.known = outcome.prompt + outcome.completion
        return outcome

    def _outcome(self, response: httpx.Response, answer: _Answer, seconds: float) -> Outcome:
        headers = response.headers
        problem = answer.problem
        if response.status_code == OK and not problem and not answer.usage:
            return Outcome(CUT_OFF, seconds, problem="the stream ended early")
        return Outcome(
            response.status_code,
            seconds,
            answer.first,
            answer.usage.get("prompt_tokens", 0),
            answer.usage.get("completion_tokens", 0),
            int(headers.get("x-agentcache-cached-tokens", 0)),
            self.known,
            headers.get("x-agentcache-tier", ""),
            problem,
            headers.get("retry-after"),
            headers.get("retry-after-ms"),
            "".join(answer.pieces),
        )


async def _read(response: httpx.Response, answer: _Answer, stream: bool, started: float) -> None:
    if response.status_code != OK or not stream:
        body = json.loads(await response.aread())
        if error := body.get("error"):
            answer.problem = error["code"] or error["type"]
        else:
            answer.usage = body["usage"]
            answer.pieces.append(body["choices"][0]["message"]["content"])
        return
    async for line in _lines(response):
        if line.startswith(b"data: {"):
            _take(json.loads(line.removeprefix(b"data: ")), answer, started)


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """Not those of httpx, for which U+2028 and its like end a line, too: models say them."""
    rest = b""
    async for read in response.aiter_bytes():
        *lines, rest = (rest + read).split(b"\n")
        for line in lines:
            yield line


def _take(chunk: dict[str, object], answer: _Answer, started: float) -> None:
    match chunk:
        case {"error": {"code": code, "type": kind}}:
            answer.problem = str(code or kind)
        case {"choices": [{"delta": {"content": str(piece)}}]} if piece:
            answer.pieces.append(piece)
            answer.first = answer.first or time.monotonic() - started
        case {"usage": dict(usage)}:
            answer.usage = usage
        case _:
            pass


@define(eq=False)
class Crowd:
    """Makes clients of the server at `url`, and lets them act at once; all tell one tally."""

    http: httpx.AsyncClient
    model: str
    tally: Tally = field(factory=Tally)

    def client(self, name: str | None = None, words: int = 20) -> Client:
        """A new client."""
        return Client(self, name, words)

    def clients(self, prefix: str, count: int, words: int = 20) -> list[Client]:
        """So many, with names that begin with `prefix`."""
        return [self.client(f"{prefix}-{number}", words) for number in range(count)]

    async def hang_up(self) -> None:
        """Close all connections that nothing is asked on."""
        await self.http.aclose()
        self.http = _client(str(self.http.base_url))

    def count_anew(self) -> Tally:
        """A new tally for what comes from now on."""
        self.tally = Tally()
        return self.tally


@asynccontextmanager
async def crowd(url: str) -> AsyncIterator[Crowd]:
    """A crowd whose clients share no limit on connections."""
    found = Crowd(_client(url), "")
    try:
        listed = (await found.http.get("/v1/models")).raise_for_status().json()
        found.model = listed["data"][0]["id"]
        yield found
    finally:
        await found.http.aclose()


def _client(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    timeout = httpx.Timeout(SECONDS)
    return httpx.AsyncClient(base_url=url, limits=limits, timeout=timeout, trust_env=False)


async def together(acts: Iterable[Awaitable[object]]) -> None:
    """Let all act at the same time; the first error stops them."""
    async with asyncio.TaskGroup() as group:
        for act in acts:
            group.create_task(_await(act))


async def _await(act: Awaitable[object]) -> None:
    await act


@asynccontextmanager
async def meanwhile(act: Callable[[], Awaitable[object]], clients: int = 1) -> AsyncIterator[None]:
    """Let `act` be done again and again, by so many clients at once, until the block ends."""
    over = False

    async def go_on() -> None:
        while not over:
            await act()

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(go_on())
        yield
        over = True
