"""GET /v1/models and /v1/models/{id}, one answer for OpenAI and Anthropic clients alike."""

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
    """A model by one of its names; the fields of both SDKs."""

    id: str
    created: int
    created_at: str
    display_name: str
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
        raise ModelError(name, "is not served here", f"Served: {', '.join(names)}")


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@define(eq=False)
class Models:
    """The models endpoints. A model is as old as this server."""

    edge: Edge
    _since: datetime = field(factory=_now, init=False)

    async def list(self, _request: Request) -> Response:
        """Every name that requests may ask for."""
        models = tuple(map(self._model, self.edge.service.models()))
        first, last = (models[0].id, models[-1].id) if models else (None, None)
        return _json(ModelList(models, first, last))

    async def get(self, request: Request) -> Response:
        """One model, or 404."""
        name = request.path_params["model"]
        require_model(self.edge.service, name)
        return _json(self._model(name))

    def _model(self, name: str) -> ModelObject:
        return ModelObject(name, int(self._since.timestamp()), self._since.isoformat(), name)


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
