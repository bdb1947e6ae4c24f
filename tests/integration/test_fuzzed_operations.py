"""Every operation of the server's own description, asked for with whatever the description allows,
and with what it does not: nothing is more than a clear refusal, and what is answered is as told.
"""

from collections.abc import Iterator

import pytest
import schemathesis
from attrs import frozen
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from agentcache.adapters.http.app import create_app
from agentcache.adapters.http.completion_ask import NEUTRAL as OF_COMPLETIONS
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.openai_ask import NEUTRAL as OF_CHAT
from agentcache.adapters.http.operations import OPERATIONS
from agentcache.adapters.http.responses_ask import NEUTRAL as OF_RESPONSES
from agentcache.adapters.prometheus.metrics import PrometheusTelemetry
from tests.whole_service import whole_service

AS_TOLD = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
REFUSED = sorted({*OF_CHAT, *OF_COMPLETIONS, *OF_RESPONSES})
QUIET = {"/health", "/health/live", "/health/ready", "/health/startup", "/metrics", "/openapi.json"}
TAKEN = [key for key in OPERATIONS if key.partition(" ")[2] not in QUIET]
JSON_TAKEN = [key for key in TAKEN if OPERATIONS[key].body not in (None, bytes)]
QUERIED = ["GET /v1/agents", "GET /v1/agents/{name}"]
SAID = {"model": "memory", "input": "Hi", "max_output_tokens": 4}
few = settings(
    max_examples=max(10, settings.default.max_examples * 2 // 5),
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@frozen
class Fuzzed:
    """A server that knows the agent `ann` and one response, and what it says of itself."""

    client: TestClient
    schema: schemathesis.BaseSchema
    response: str

    def operation(self, key: str) -> APIOperation:
        method, _, path = key.partition(" ")
        return self.schema[path][method]


@pytest.fixture
def fuzzed() -> Iterator[Fuzzed]:
    with whole_service() as whole:
        edge = Edge(whole.service, 100_000, max_messages=20)
        app = create_app(edge, PrometheusTelemetry())
        with TestClient(app, raise_server_exceptions=False) as client:
            response = client.post("/v1/responses", json=SAID, headers={"x-agent-id": "ann"})
            schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
            yield Fuzzed(client, schema, response.raise_for_status().json()["id"])
        assert whole.service.health().ready


def ask(fuzzed: Fuzzed, case: Case, checks: list[object]) -> None:
    given = case.as_transport_kwargs(base_url=str(fuzzed.client.base_url))
    given.pop("cookies", None)
    if isinstance(given.get("data"), bytes):
        given["content"] = given.pop("data")
    case.validate_response(fuzzed.client.request(**given), checks=checks)


def likely(data: st.DataObject, case: Case, fuzzed: Fuzzed) -> None:
    """Make the case one that may be answered: of things that there are, as a rule."""
    for name in case.path_parameters or {}:
        there = {"name": "ann", "id": fuzzed.response, "model": "memory"}[name]
        if data.draw(st.booleans(), label="one that is there"):
            case.path_parameters[name] = there
    if isinstance(case.body, dict) and data.draw(st.integers(0, 9), label="tamed") > 0:
        for name in REFUSED:
            case.body.pop(name, None)
        if "model" in case.body:
            case.body["model"] = "memory"
        if OPERATIONS[f"{case.method} {case.path}"].events:
            case.body["stream"] = data.draw(st.booleans(), label="stream")
        if "previous_response_id" in case.body:
            case.body["previous_response_id"] = fuzzed.response


@pytest.mark.parametrize("key", TAKEN)
def test_whatever_is_asked_for_is_answered_as_told(fuzzed: Fuzzed, key: str) -> None:
    @few
    @given(case=fuzzed.operation(key).as_strategy(), data=st.data())
    def run(case: Case, data: st.DataObject) -> None:
        likely(data, case, fuzzed)
        ask(fuzzed, case, AS_TOLD)

    run()


@pytest.mark.parametrize("key", [*JSON_TAKEN, *QUERIED])
def test_what_is_not_as_told_is_refused(fuzzed: Fuzzed, key: str) -> None:
    operation = fuzzed.operation(key)

    @few
    @given(case=operation.as_strategy(GenerationMode.NEGATIVE))
    def run(case: Case) -> None:
        ask(fuzzed, case, [*AS_TOLD, negative_data_rejection])

    run()


@pytest.mark.parametrize("path", sorted(QUIET))
def test_what_takes_nothing_is_answered_as_told(fuzzed: Fuzzed, path: str) -> None:
    ask(fuzzed, fuzzed.operation(f"GET {path}").Case(), AS_TOLD)
