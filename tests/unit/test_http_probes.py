"""What is asked about the server itself: models, health, metrics."""

import pytest

from agentcache.adapters.http.app import create_app
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.prometheus.metrics import PrometheusTelemetry
from agentcache.service import Health
from tests.scripted_service import ScriptedService, ask, client_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_every_name_of_the_model_is_listed_for_both_sdks() -> None:
    async with client_of(create_app(Edge(ScriptedService(), 100))) as client:
        listed = (await client.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["tiny", "vendor/tiny"]
    assert (listed["object"], listed["data"][0]["object"]) == ("list", "model")
    assert (listed["first_id"], listed["last_id"]) == ("tiny", "vendor/tiny")
    assert (listed["has_more"], listed["data"][0]["type"]) == (False, "model")


async def test_models_that_could_be_loaded_instead_come_after_the_one_that_is() -> None:
    async with client_of(create_app(Edge(ScriptedService(known=("tiny", "spare")), 100))) as client:
        listed = (await client.get("/v1/models")).json()
        spare = (await client.get("/v1/models/spare")).json()
    told = [(model["id"], model["loaded"]) for model in listed["data"]]
    assert told == [("tiny", True), ("vendor/tiny", True), ("spare", False)]
    assert (spare["id"], spare["loaded"]) == ("spare", False)


@pytest.mark.parametrize("name", ["tiny", "vendor/tiny"])
async def test_a_model_is_found_by_each_of_its_names(name: str) -> None:
    async with client_of(create_app(Edge(ScriptedService(), 100))) as client:
        assert (await client.get(f"/v1/models/{name}")).json()["id"] == name


async def test_a_model_by_another_name_is_not_found() -> None:
    async with client_of(create_app(Edge(ScriptedService(), 100))) as client:
        response = await client.get("/v1/models/vendor/other")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    assert "/v1/admin/model" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("state", "statuses"),
    [
        (Health(True, True, True, {}), (200, 200, 200)),
        (Health(True, False, False, {}), (200, 503, 503)),
        (Health(True, False, True, {}), (200, 503, 200)),
        (Health(False, False, True, {}), (503, 503, 200)),
    ],
)
async def test_each_probe_answers_its_own_question(
    state: Health, statuses: tuple[int, int, int]
) -> None:
    async with client_of(create_app(Edge(ScriptedService(state=state), 100))) as client:
        live = (await client.get("/health/live")).status_code
        ready = (await client.get("/health/ready")).status_code
        started = (await client.get("/health/startup")).status_code
        alias = (await client.get("/health")).status_code
    assert (live, ready, started) == statuses
    assert alias == ready


async def test_a_probe_tells_what_is_to_be_said_even_if_all_is_well() -> None:
    state = Health(True, True, True, {"store": "read-only: disk full", "queued": 3})
    async with client_of(create_app(Edge(ScriptedService(state=state), 100))) as client:
        answer = (await client.get("/health/ready")).json()
    assert answer == {"status": "ok", "detail": {"store": "read-only: disk full", "queued": 3}}


async def test_while_draining_nothing_is_ready_and_new_turns_are_refused_for_now() -> None:
    edge = Edge(ScriptedService(), 1000)
    await edge.drain(patience=0)
    async with client_of(create_app(edge)) as client:
        ready = await client.get("/health/ready")
        live = await client.get("/health/live")
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
        turn = await client.post("/v1/chat/completions", json=body)
    assert (ready.status_code, live.status_code) == (503, 200)
    assert ready.json()["detail"] == {"edge": "draining"}
    assert (turn.status_code, turn.headers["retry-after"]) == (503, "1")


async def test_metrics_are_served_where_there_are_some() -> None:
    telemetry = PrometheusTelemetry()
    telemetry.forwarded(42)
    async with client_of(create_app(Edge(ScriptedService(), 100), telemetry)) as client:
        response = await client.get("/metrics")
    assert "agentcache_model_tokens_total 42.0" in response.text
    assert response.headers["content-type"].startswith("text/plain; version=")


async def test_a_server_can_be_asked_while_it_starts() -> None:
    service = ScriptedService(state=Health(True, False, False, {}))
    assert (await ask(service)).status_code == 200
