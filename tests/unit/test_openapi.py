"""The description of the server: nothing is missing in it, and nothing of it is made up."""

import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from agentcache.adapters import http
from agentcache.adapters.http.agents import Agents
from agentcache.adapters.http.app import Door, create_app
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.gate import LOOPBACK
from agentcache.adapters.http.openapi import Description
from agentcache.adapters.http.operations import OPERATIONS
from agentcache.adapters.memory.keyring import MemoryKeyring
from agentcache.adapters.prometheus.metrics import PrometheusTelemetry
from agentcache.domain.access import Access
from tests.scripted_service import ScriptedService, client_of

pytestmark = pytest.mark.anyio
DOOR = Door(MemoryKeyring({"k": Access("acme")}), LOOPBACK | {"edge"})
OPEN = re.compile(r"/health(/\w+)?|/openapi\.json")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def app() -> Starlette:
    edge = Edge(ScriptedService(), 100_000)
    return create_app(edge, PrometheusTelemetry(), DOOR)


@pytest.fixture
async def description() -> dict[str, Any]:
    async with client_of(app()) as client:
        return dict((await client.get("/openapi.json")).raise_for_status().json())


def told(description: dict[str, Any]) -> set[str]:
    return {
        f"{method.upper()} {path}"
        for path, methods in description["paths"].items()
        for method in methods
    }


async def test_its_operations_are_those_of_the_routes(description: dict[str, Any]) -> None:
    agents = Agents(Edge(ScriptedService(), 0))._endpoints
    found = {f"{method} /v1/agents/{{name}}/{what}".rstrip("/") for method, what in agents}
    for route in app().routes:
        assert isinstance(route, Route)
        path = re.sub(r":\w+}", "}", route.path)
        if path != "/v1/agents/{name}":
            found |= {f"{method} {path}" for method in (route.methods or set()) - {"HEAD"}}
    assert told(description) == found == set(OPERATIONS)


def test_a_route_that_nothing_is_told_of_is_noticed() -> None:
    with pytest.raises(AssertionError, match="POST /v1/news"):
        Description([Route("/v1/news", app(), methods=["POST"])])._encoded  # noqa: B018


def test_the_bodies_that_it_tells_of_are_those_that_are_decoded() -> None:
    modules = [
        import_module(f"{http.__name__}.{one.name}") for one in pkgutil.iter_modules(http.__path__)
    ]
    decoded = {
        value.type
        for module in modules
        for value in vars(module).values()
        if isinstance(value, msgspec.json.Decoder)
    }
    assert decoded == {one.body for one in OPERATIONS.values() if one.body not in (None, bytes)}


async def test_every_reference_leads_somewhere(description: dict[str, Any]) -> None:
    schemas = description["components"]["schemas"]
    references = set(_references(description))
    assert len(references) > 50
    assert references == {f"#/components/schemas/{name}" for name in schemas}
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in schemas)


def _references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(found := value.get("$ref"), str):
            yield found
        for one in value.values():
            yield from _references(one)
    elif isinstance(value, list):
        for one in value:
            yield from _references(one)


def _sent(key: str) -> tuple[str, str]:
    method, _, path = key.partition(" ")
    return method, path.format(id="resp_x", name="ann", model="tiny")


async def _answered(key: str, **headers: str) -> httpx.Response:
    method, path = _sent(key)
    async with client_of(app()) as client:
        return await client.request(method, path, headers=headers)


@pytest.mark.parametrize("key", OPERATIONS)
async def test_every_operation_takes_a_key_but_those_that_are_told_to_all(key: str) -> None:
    assert ((await _answered(key)).status_code == 401) == (not OPEN.fullmatch(_sent(key)[1]))


@pytest.mark.parametrize("key", OPERATIONS)
async def test_no_operation_answers_to_another_host(key: str) -> None:
    answer = await _answered(key, host="evil.example", **{"x-api-key": "k"})
    assert answer.status_code == 403
    assert "evil.example" in answer.text


@pytest.mark.parametrize("key", [key for key, one in OPERATIONS.items() if one.admin])
async def test_what_takes_admin_rights_is_refused_to_other_keys(key: str) -> None:
    answer = await _answered(key, **{"x-api-key": "k"})
    assert answer.status_code == 403
    assert "admin rights" in answer.json()["error"]["message"]


async def test_it_says_what_takes_no_key_and_what_takes_admin_rights(
    description: dict[str, Any],
) -> None:
    for key, one in OPERATIONS.items():
        method, _, path = key.partition(" ")
        said = description["paths"][path][method.lower()]
        assert (said.get("security") == []) == bool(OPEN.fullmatch(path))
        assert ("admin rights" in said.get("description", "")) == one.admin
