"""Rate limits: who shares one, what is refused, and what clients are told."""

import re

import httpx
import pytest

from agentcache.adapters.http.app import Door, create_app
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.rates import RateLimiter
from agentcache.adapters.memory.keyring import MemoryKeyring
from agentcache.domain.access import Access
from agentcache.settings import parse_rate
from tests.scripted_service import ASKED, ScriptedService

pytestmark = pytest.mark.anyio
KEYS = MemoryKeyring({"a": Access("acme"), "u": Access("umbrella")})


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def limited(
    tenant: str = "", agent: str = "", service: ScriptedService | None = None
) -> httpx.AsyncClient:
    rates = RateLimiter(parse_rate(tenant), parse_rate(agent))
    app = create_app(Edge(service or ScriptedService(), 100_000, rates=rates), door=Door(KEYS))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


async def ask(client: httpx.AsyncClient, key: str = "a", **headers: str) -> httpx.Response:
    return await client.post(
        "/v1/chat/completions", json=ASKED, headers={"x-api-key": key, **headers}
    )


async def test_a_tenant_that_used_its_limit_up_waits_and_others_do_not() -> None:
    async with limited(tenant="2/hour") as client:
        assert [(await ask(client)).status_code for _ in range(3)] == [200, 200, 429]
        assert (await ask(client, "u")).status_code == 200


async def test_each_agent_has_its_own_limit() -> None:
    async with limited(agent="1/hour") as client:
        first = {"x-agent-id": "one"}
        assert [(await ask(client, **first)).status_code for _ in range(2)] == [200, 429]
        assert (await ask(client, **{"x-agent-id": "two"})).status_code == 200
        assert (await ask(client, "u", **first)).status_code == 200
        assert (await ask(client)).status_code == 200  # nobody in particular


async def test_a_refused_turn_says_when_to_come_back_and_was_not_begun() -> None:
    async with limited(tenant="1/hour") as client:
        await ask(client)
        refused = await ask(client)
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert "tenant's limit of 1 per 1 hour" in refused.json()["error"]["message"]
    assert 0 < int(refused.headers["retry-after"]) <= 3600
    assert 0 < int(refused.headers["retry-after-ms"]) <= 3_600_000


async def test_a_refused_turn_is_counted() -> None:
    service = ScriptedService()
    async with limited("1/hour", service=service) as client:
        assert [(await ask(client)).status_code for _ in range(3)] == [200, 429, 429]
    assert service.telemetry.refusals == ["rate_limit", "rate_limit"]


async def test_a_turn_that_is_refused_for_its_agent_is_not_counted_for_its_tenant() -> None:
    async with limited(tenant="2/hour", agent="1/hour") as client:
        one = {"x-agent-id": "one"}
        assert [(await ask(client, **one)).status_code for _ in range(3)] == [200, 429, 429]
        assert (await ask(client, **{"x-agent-id": "two"})).status_code == 200


async def test_an_answer_tells_the_limits_and_what_is_left_of_them() -> None:
    async with limited(tenant="5/minute", agent="2/minute") as client:
        headers = (await ask(client, **{"x-agent-id": "one"})).headers
    assert headers["ratelimit-policy"] == '"tenant";q=5;w=60, "agent";q=2;w=60'
    assert re.fullmatch(r'"tenant";r=4;t=\d+, "agent";r=1;t=\d+', headers["ratelimit"])


async def test_a_refusal_tells_them_too() -> None:
    async with limited(tenant="1/minute") as client:
        await ask(client)
        refused = await ask(client)
    assert refused.status_code == 429
    assert refused.headers["ratelimit-policy"] == '"tenant";q=1;w=60'
    assert re.fullmatch(r'"tenant";r=0;t=\d+', refused.headers["ratelimit"])


async def test_without_limits_nothing_is_told_of_them() -> None:
    async with limited() as client:
        assert "ratelimit" not in (await ask(client)).headers
