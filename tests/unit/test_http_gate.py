"""The gate: who is let in, under which Host, from which pages, and as which tenant."""

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcache.adapters.http.app import Door, create_app
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.gate import LOOPBACK, Gate
from agentcache.adapters.memory.keyring import MemoryKeyring
from agentcache.domain.access import Access
from agentcache.domain.errors import Forbidden
from tests.scripted_service import ASKED, ScriptedService

pytestmark = pytest.mark.anyio
KEYS = MemoryKeyring({"s3cret": Access("acme"), "other": Access("umbrella")})


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def client_through(
    door: Door, service: ScriptedService | None = None, base: str = "http://localhost"
) -> httpx.AsyncClient:
    app = create_app(Edge(service or ScriptedService(), 100_000), door=door)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=base)


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer s3cret"},
        {"authorization": "bearer   s3cret "},
        {"x-api-key": "s3cret"},
        {"x-api-key": "s3cret", "authorization": "Basic dTpw"},
    ],
)
async def test_a_turn_belongs_to_the_tenant_of_its_key(headers: dict[str, str]) -> None:
    service = ScriptedService()
    async with client_through(Door(KEYS), service) as client:
        answer = await client.post("/v1/chat/completions", json=ASKED, headers=headers)
    assert answer.status_code == 200
    assert [ask.identity.tenant for ask in service.asks] == ["acme"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "s3cret"},
        {"authorization": "Basic s3cret"},
        {"authorization": "Bearer"},
        {"x-api-key": ""},
        {"x-api-key": "S3CRET"},
        {"authorization": "Bearer wrong", "x-api-key": "s3cret"},
    ],
)
async def test_without_a_key_in_force_nothing_is_begun(headers: dict[str, str]) -> None:
    service = ScriptedService()
    async with client_through(Door(KEYS), service) as client:
        answer = await client.post("/v1/chat/completions", json=ASKED, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["type"] == "authentication_error"
    assert "s3cret" not in answer.text
    assert not service.asks


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/nowhere", "/healthy"])
async def test_every_other_path_takes_a_key_too(path: str) -> None:
    async with client_through(Door(KEYS)) as client:
        assert (await client.get(path)).status_code == 401


async def test_who_is_not_let_in_is_counted_by_the_reason() -> None:
    service = ScriptedService()
    async with client_through(Door(KEYS, LOOPBACK), service) as client:
        await client.get("/v1/models")
        await client.get("/v1/models", headers={"host": "evil.example", "x-api-key": "s3cret"})
        await client.delete("/v1/agents/ann", headers={"x-api-key": "s3cret"})
        assert (await client.get("/v1/models", headers={"x-api-key": "s3cret"})).is_success
    assert service.telemetry.refusals == ["unauthenticated", "forbidden", "forbidden"]


async def test_probes_take_no_key() -> None:
    async with client_through(Door(KEYS)) as client:
        for path in ("/health", "/health/live", "/health/ready", "/health/startup"):
            assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:99", "LOCALHOST"]
)
async def test_a_loopback_server_answers_to_its_own_names(host: str) -> None:
    async with client_through(Door(hosts=LOOPBACK)) as client:
        assert (await client.get("/v1/models", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example:8080", "127.0.0.1.nip.io", ""]
)
async def test_a_name_that_was_made_to_resolve_to_loopback_is_refused(host: str) -> None:
    async with client_through(Door(hosts=LOOPBACK)) as client:
        answer = await client.get("/v1/models", headers={"host": host})
    assert answer.status_code == 403
    assert answer.json()["error"]["type"] == "permission_error"


@given(st.text(st.characters(codec="latin-1")))
def test_no_host_but_the_listed_ones_is_answered_to(host: str) -> None:
    gate = Gate(lambda *_: None, hosts=LOOPBACK)  # type: ignore[arg-type]
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if name.lower() in LOOPBACK:
        gate._check_host(host)
    else:
        with pytest.raises(Forbidden):
            gate._check_host(host)


async def test_pages_of_other_origins_get_nothing_unless_they_are_listed() -> None:
    asked = {"origin": "https://app.example", "access-control-request-method": "POST"}
    async with client_through(Door(KEYS)) as client:
        answer = await client.options("/v1/chat/completions", headers=asked)
        assert "access-control-allow-origin" not in answer.headers
    async with client_through(Door(KEYS, origins=("https://app.example",))) as client:
        answer = await client.options("/v1/chat/completions", headers=asked)
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        asked["origin"] = "https://app.example.evil"
        answer = await client.options("/v1/chat/completions", headers=asked)
        assert "access-control-allow-origin" not in answer.headers


async def test_every_answer_says_that_it_is_no_page_and_not_to_be_kept() -> None:
    async with client_through(Door(KEYS)) as client:
        for path, key in (("/health", ""), ("/v1/models", "s3cret"), ("/v1/models", "no")):
            headers = (await client.get(path, headers={"x-api-key": key})).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"
            assert "default-src 'none'" in headers["content-security-policy"]
