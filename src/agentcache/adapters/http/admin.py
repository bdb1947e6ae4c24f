"""POST /v1/admin/model: another model in place of the one that is served."""

import time
from typing import Annotated

import msgspec
from attrs import define
from starlette.requests import Request
from starlette.responses import Response

from agentcache.adapters.http.body import read_json
from agentcache.adapters.http.edge import Edge
from agentcache.domain.errors import InvalidRequest, Unavailable

_MOST_BODY = 100_000


class SwapRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`model` is what `--model` takes; `within` are the seconds that running turns get."""

    model: Annotated[str, msgspec.Meta(max_length=4096)]
    within: float = 30.0


class Swapped(msgspec.Struct, frozen=True):
    """The model that is served now, and the seconds it took until it was."""

    model: str
    digest: str
    seconds: float


_decoder = msgspec.json.Decoder(SwapRequest)


@define(eq=False)
class Admin:
    """What takes admin rights, where there are keys."""

    edge: Edge

    async def swap(self, request: Request) -> Response:
        """Answers when the model is served, or why the old one still is. See `Service.swap`."""
        self.edge.require_admin(request)
        body = await read_json(request, _decoder, _MOST_BODY)
        if self.edge.draining:
            raise Unavailable("draining")
        if not body.model.strip() or "\0" in body.model:
            raise InvalidRequest("model is empty, or cannot be a name", "model")
        began = time.monotonic()
        card = await self.edge.service.swap(body.model, body.within)
        seconds = round(time.monotonic() - began, 3)
        answer = Swapped(card.name, card.digest.hex(), seconds)
        return Response(msgspec.json.encode(answer), media_type="application/json")
