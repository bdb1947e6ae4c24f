"""GET /health/live, /health/ready, /health/startup, and /health for the second."""

from typing import Literal

import msgspec
from attrs import define
from starlette.requests import Request
from starlette.responses import Response

from agentcache.adapters.http.edge import Edge


class HealthReport(msgspec.Struct, frozen=True):
    """How it is, and what there is to be said of it."""

    status: Literal["ok", "unavailable"]
    detail: dict[str, str | int | float]


@define(eq=False)
class HealthChecks:
    """200 for yes, 503 for no; either way with what is to be said."""

    edge: Edge

    async def live(self, _request: Request) -> Response:
        """Whether the process does its work; if not, only a restart helps."""
        return self._answer(self.edge.service.health().live)

    async def ready(self, _request: Request) -> Response:
        """Whether new turns are taken."""
        return self._answer(self.edge.service.health().ready and not self.edge.draining)

    async def startup(self, _request: Request) -> Response:
        """Whether the model has been loaded."""
        return self._answer(self.edge.service.health().started)

    def _answer(self, well: bool) -> Response:
        detail = dict(self.edge.service.health().detail)
        if self.edge.draining:
            detail["edge"] = "draining"
        body = HealthReport("ok" if well else "unavailable", detail)
        return Response(msgspec.json.encode(body), 200 if well else 503, None, "application/json")
