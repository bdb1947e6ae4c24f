"""A service that does what a test says, for tests of the edge; and the edge around it."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from typing import Any

import httpx
from attrs import define, field
from starlette.applications import Starlette

from agentcache.adapters.http.app import create_app
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.memory.telemetry import RecordingTelemetry
from agentcache.domain.answer import Reading
from agentcache.domain.errors import AgentCacheError
from agentcache.domain.events import Admitted, Delta, Ended
from agentcache.domain.planner import CLIENT_LEFT
from agentcache.domain.request import Finish, Miss, Tier
from agentcache.domain.spec import CacheSpec, LayerSpec
from agentcache.inbox import Inbox
from agentcache.ports.engine import ModelCard
from agentcache.service import Ask, Health

CARD = ModelCard("tiny", b"\x01" * 32, CacheSpec((LayerSpec.full(1, 8),)), 512, 300, frozenset({2}))
WARM = Admitted(7, 5, Tier.WARM, Miss.NONE)
WELL = Health(True, True, True, {})
Said = Delta | Ended | Exception
HELLO = (Delta("Hel", 1), Delta("", 1), Delta("lo", 1), Ended(Finish.STOP, 7, 5, 4))
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


@define(eq=False)
class ScriptedTurn:
    """Says what it is told to. `cancelled` is set when its place is given back before its end."""

    id: str
    admitted: Admitted
    reading: Reading = field(factory=Reading)
    asked: float = 1_700_000_000.5
    cancelled: asyncio.Event = field(factory=asyncio.Event, init=False)
    over: bool = field(default=False, init=False)
    _inbox: "Inbox[Said]" = field(factory=Inbox, init=False)

    def tell(self, *events: Said) -> None:
        for event in events:
            self.over = self.over or not isinstance(event, Delta)
            self._inbox.put(event)

    async def __aiter__(self) -> AsyncIterator[Delta | Ended]:
        event: Delta | Ended | None = None
        while not isinstance(event, Ended):
            if (event := await self.next()) is not None:
                yield event

    async def next(self, pause: float = math.inf) -> Delta | Ended | None:
        event = await self._inbox.get(pause)
        if isinstance(event, Exception):
            raise event
        return event

    async def cancel(self, why: AgentCacheError = CLIENT_LEFT) -> None:
        if not self.over:
            self.cancelled.set()
            self.tell(why)


@define(eq=False)
class ScriptedService:
    """Admits turns that tell `script`, or refuses them with `refusal`.

    While `doors` is not set, turns wait to be admitted; `waiting` and `gave_up` tell of these.
    """

    script: tuple[Said, ...] = HELLO
    refusal: Exception | None = None
    admitted: Admitted = WARM
    state: Health = WELL
    doors: asyncio.Event = field(factory=asyncio.Event)
    model: ModelCard = CARD
    known: tuple[str, ...] = ()
    telemetry: RecordingTelemetry = field(factory=RecordingTelemetry)
    reading: Reading = field(factory=Reading)
    asks: list[Ask] = field(factory=list, init=False)
    turns: asyncio.Queue[ScriptedTurn] = field(factory=asyncio.Queue, init=False)
    waiting: asyncio.Event = field(factory=asyncio.Event, init=False)
    gave_up: asyncio.Event = field(factory=asyncio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self.doors.set()

    def models(self) -> tuple[str, ...]:
        return (self.model.name, "vendor/tiny")

    def piece(self, token: int) -> bytes:
        return bytes([token])

    def known_models(self) -> tuple[str, ...]:
        return self.known

    def health(self) -> Health:
        return self.state

    async def begin(self, ask: Ask) -> ScriptedTurn:
        self.asks.append(ask)
        if self.refusal is not None:
            raise self.refusal
        self.waiting.set()
        try:
            await self.doors.wait()
        except asyncio.CancelledError:
            self.gave_up.set()
            raise
        turn = ScriptedTurn(f"t{len(self.asks)}", self.admitted, self.reading)
        turn.tell(*self.script)
        self.turns.put_nowait(turn)
        return turn


def app_of(service: ScriptedService, max_body: int = 100_000) -> Starlette:
    """The application around a scripted service."""
    return create_app(Edge(service, max_body))


def client_of(app: Starlette) -> httpx.AsyncClient:
    """A client without a network; errors that leave the application are raised."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://edge")


async def ask(service: ScriptedService, /, **fields: Any) -> httpx.Response:
    """POST a small chat completion request with `fields` to an application around `service`."""
    async with client_of(app_of(service)) as client:
        return await client.post("/v1/chat/completions", json=ASKED | fields)


def frames(text: str) -> list[Any]:
    """The data of every event of a stream, decoded where it is JSON; comments as they are."""
    return [_frame(event) for event in text.split("\n\n") if event]


def _frame(event: str) -> Any:
    payload = event.removeprefix("data: ")
    return json.loads(payload) if payload.startswith("{") else payload


@define(eq=False)
class Call:
    """One request at the level of ASGI, whose client can hang up at any moment."""

    app: Starlette
    fields: dict[str, Any] = field(factory=dict)
    sent: asyncio.Queue[dict[str, Any]] = field(factory=asyncio.Queue, init=False)
    _received: asyncio.Queue[dict[str, Any]] = field(factory=asyncio.Queue, init=False)

    async def run(self) -> None:
        body = json.dumps(ASKED | self.fields).encode()
        self._received.put_nowait({"type": "http.request", "body": body, "more_body": False})
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "path": "/v1/chat/completions",
            "query_string": b"",
            "headers": [],
        }
        await self.app(scope, self._received.get, self._send)

    def hang_up(self) -> None:
        self._received.put_nowait({"type": "http.disconnect"})

    async def _send(self, message: Any) -> None:
        self.sent.put_nowait(message)
