"""/v1/agents: what is remembered, and what can be done with it.

Names are percent-encoded in paths, slashes among them: `/v1/agents/team%2Fann/fork`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from urllib.parse import unquote

import msgspec
from attrs import define, evolve, field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from agentcache.adapters.http.agent_types import (
    AgentList,
    AgentObject,
    Deleted,
    NewAgent,
    NewName,
    Pinning,
    Rewinding,
    Spoken,
    agent_object,
)
from agentcache.adapters.http.body import read_json
from agentcache.adapters.http.carrying import exported, imported
from agentcache.adapters.http.connection import while_connected
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.gate import access_of
from agentcache.adapters.http.openai_ask import asked
from agentcache.adapters.http.query import flag, number
from agentcache.domain.errors import AgentExists, InvalidRequest, UnknownAgent
from agentcache.domain.request import Identity
from agentcache.succession import check_name

_MOST_BODY = 100_000  # of requests that carry no conversation
_LONGEST_PAGE = 1000
_Endpoint = Callable[[Request, str], Awaitable[Response]]


@define(eq=False)
class Agents:
    """The agents of the request's tenant, of the model that is served."""

    edge: Edge
    _beginning: set[tuple[str, str]] = field(factory=set, init=False)

    async def all(self, request: Request) -> Response:
        """GET: a page of them by name (`limit`, `after`). POST: a new one."""
        if request.method == "POST":
            return await self._create(request)
        after, limit = (
            request.query_params.get("after", ""),
            number(request, "limit", _LONGEST_PAGE),
        )
        nameless = flag(request, "nameless")
        views = await asyncio.to_thread(self.edge.service.agents, _tenant(request), nameless)
        rest = [view for view in views if view.name > after]
        page = tuple(agent_object(view) for view in rest[:limit])
        return _json(AgentList(page, has_more=len(rest) > limit))

    async def one(self, request: Request) -> Response:
        """What is under the name of one agent: itself, or what is done with it."""
        name, action = _addressed(request)
        endpoint = self._endpoints.get((request.method, action))
        if endpoint is None:
            raise HTTPException(405 if not action else 404)
        return await endpoint(request, name)

    @property
    def _endpoints(self) -> dict[tuple[str, str], _Endpoint]:
        return {
            ("GET", ""): self._get,
            ("DELETE", ""): self._delete,
            ("POST", "fork"): self._fork,
            ("POST", "rewind"): self._rewind,
            ("POST", "pin"): self._pin,
            ("POST", "prefill"): self._prefill,
            ("GET", "export"): self._export,
            ("POST", "import"): self._import,
        }

    # -- looking -----------------------------------------------------------------------------

    async def _get(self, request: Request, name: str) -> Response:
        wanted = flag(request, "messages")
        return _json(await self._object(request, name, history=wanted))

    async def _object(self, request: Request, name: str, history: bool = False) -> AgentObject:
        service, tenant = self.edge.service, _tenant(request)
        view = await asyncio.to_thread(service.agent, tenant, name)
        return agent_object(view, service.history(tenant, name) if history else None)

    # -- changing ----------------------------------------------------------------------------

    async def _create(self, request: Request) -> Response:
        body = await self.edge.read(request, _NEW)
        check_name(body.name)
        new = (_tenant(request), body.name)
        if new in self._beginning or self._is_known(request, body.name):
            raise AgentExists(body.name)
        self._beginning.add(new)
        try:
            await self._compute(request, body.name, body, body.codec)
        finally:
            self._beginning.discard(new)
        return _json(await self._object(request, body.name), 201)

    async def _prefill(self, request: Request, name: str) -> Response:
        body = await self.edge.read(request, _SPOKEN)
        await self._compute(request, name, body)
        return _json(await self._object(request, name))

    async def _fork(self, request: Request, name: str) -> Response:
        body = await read_json(request, _NEW_NAME, _MOST_BODY)
        await self.edge.service.fork(_tenant(request), name, body.name)
        return _json(await self._object(request, body.name), 201)

    async def _rewind(self, request: Request, name: str) -> Response:
        body = await read_json(request, _REWINDING, _MOST_BODY)
        await self.edge.service.rewind(_tenant(request), name, body.turns)
        return _json(await self._object(request, name))

    async def _pin(self, request: Request, name: str) -> Response:
        body = await read_json(request, _PINNING, _MOST_BODY)
        if body.ttl is not msgspec.UNSET:
            at = None if body.ttl is None else time.time() + body.ttl
            await self.edge.service.expire(_tenant(request), name, at)
        if body.pinned is not msgspec.UNSET:
            await self.edge.service.pin(_tenant(request), name, body.pinned)
        return _json(await self._object(request, name))

    async def _delete(self, request: Request, name: str) -> Response:
        self.edge.require_admin(request)
        await self.edge.service.forget(_tenant(request), name)
        return _json(Deleted(name))

    async def _export(self, request: Request, name: str) -> Response:
        return await exported(self.edge.service, _tenant(request), name)

    async def _import(self, request: Request, name: str) -> Response:
        await imported(self.edge.service, _tenant(request), name, request)
        return _json(await self._object(request, name), 201)

    async def _compute(
        self, request: Request, name: str, spoken: Spoken, codec: str | None = None
    ) -> None:
        """Prefill the conversation as the agent's, and say nothing."""
        chat = spoken.chat_request(self.edge.service.model.name)
        identity = Identity(name, exclusive=True)
        ask = evolve(asked(chat, request.headers), identity=identity, max_tokens=0, codec=codec)
        turn = await self.edge.admit(ask, request)
        try:
            async with while_connected(request.receive):
                async for _event in turn:
                    pass
        finally:
            await self.edge.end(turn)

    def _is_known(self, request: Request, name: str) -> bool:
        try:
            self.edge.service.history(_tenant(request), name)
        except UnknownAgent:
            return False
        return True


_NEW = msgspec.json.Decoder(NewAgent)
_SPOKEN = msgspec.json.Decoder(Spoken)
_NEW_NAME = msgspec.json.Decoder(NewName)
_REWINDING = msgspec.json.Decoder(Rewinding)
_PINNING = msgspec.json.Decoder(Pinning)
_ACTIONS = frozenset({"fork", "rewind", "pin", "prefill", "export", "import"})


def _addressed(request: Request) -> tuple[str, str]:
    """The agent's name, and what is to be done with it (empty: nothing but itself).

    Slashes that are not encoded belong to the name, but for the one before an action.
    """
    raw = request.scope.get("raw_path") or request.scope["path"].encode()
    parts = raw.decode("latin-1").split("/v1/agents/", 1)[-1].split("/")
    action = parts.pop() if len(parts) > 1 and parts[-1] in _ACTIONS else ""
    try:
        name = "/".join(unquote(part, errors="strict") for part in parts)
    except UnicodeDecodeError:
        raise InvalidRequest("the agent's name is not UTF-8, percent-encoded", "name") from None
    return name, action


def _tenant(request: Request) -> str:
    return access_of(request.scope).tenant


def _json(value: msgspec.Struct, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
