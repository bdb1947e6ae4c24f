"""GET /v1/models and /v1/models/{id}, one answer for OpenAI and Anthropic clients alike."""

import asyncio
from datetime import UTC, datetime
from typing import Literal

import msgspec
from attrs import define, field
from starlette.requests import Request
from starlette.responses import Response

from agentcache.adapters.http.edge import Edge
from agentcache.domain.errors import ModelError
from agentcache.service import Service


class ModelObject(msgspec.Struct, frozen=True):
    """A model by one of its names; the fields of both SDKs. Only one that is `loaded` answers."""

    id: str
    created: int
    created_at: str
    display_name: str
    loaded: bool = True
    object: Literal["model"] = "model"
    type: Literal["model"] = "model"
    owned_by: str = "agentcache"
    lifecycle: Literal["active"] = "active"


class ModelList(msgspec.Struct, frozen=True):
    """All there are, on one page."""

    data: tuple[ModelObject, ...]
    first_id: str | None
    last_id: str | None
    has_more: bool = False
    object: Literal["list"] = "list"


def require_model(service: Service, name: str) -> None:
    """Raise ModelError unless `name` is one that the service answers to."""
    names = service.models()
    if name not in names:
        remedy = f"Served: {', '.join(names)}. POST /v1/admin/model loads another one"
        raise ModelError(name, "it is not served here", remedy)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@define(eq=False)
class Models:
    """The models endpoints. A model is as old as this server."""

    edge: Edge
    _since: datetime = field(factory=_now, init=False)

    async def list(self, _request: Request) -> Response:
        """Every name that requests may ask for, then those that can be loaded instead."""
        served = self.edge.service.models()
        known = await self._known()
        others = (self._model(name, loaded=False) for name in known if name not in served)
        models = (*map(self._model, served), *others)
        first, last = (models[0].id, models[-1].id) if models else (None, None)
        return _json(ModelList(models, first, last))

    async def get(self, request: Request) -> Response:
        """One model, or 404."""
        name = request.path_params["model"]
        if name not in self.edge.service.models() and name in await self._known():
            return _json(self._model(name, loaded=False))
        require_model(self.edge.service, name)
        return _json(self._model(name))

    async def _known(self) -> tuple[str, ...]:
        return await asyncio.to_thread(self.edge.service.known_models)

    def _model(self, name: str, loaded: bool = True) -> ModelObject:
        since = self._since
        return ModelObject(name, int(since.timestamp()), since.isoformat(), name, loaded)


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
