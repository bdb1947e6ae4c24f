"""Errors at the edge: each has its status and shape, and tells no more than clients may know."""

import re

import pytest
import structlog

from agentcache.adapters.http.errors import TABLE
from agentcache.domain import errors
from agentcache.domain.errors import (
    IntegrityError,
    InvalidRequest,
    ModelError,
    Overloaded,
    PromptTooLong,
    TurnCancelled,
    TurnFailed,
    Unavailable,
    UnknownAgent,
)
from tests.scripted_service import ScriptedService, app_of, ask, client_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize(
    ("refusal", "status", "kind", "code", "param"),
    [
        (InvalidRequest("no", "stop"), 400, "invalid_request_error", None, "stop"),
        (
            PromptTooLong(tokens=9, limit=5),
            400,
            "invalid_request_error",
            "context_length_exceeded",
            "messages",
        ),
        (UnknownAgent("ann"), 404, "not_found_error", "agent_not_found", None),
        (ModelError("m", "gone"), 404, "not_found_error", "model_not_found", None),
        (Overloaded("full", 2.5), 429, "rate_limit_error", "overloaded", None),
        (Unavailable("starting", 0.2), 503, "overloaded_error", "unavailable", None),
        (TurnCancelled(), 503, "overloaded_error", "turn_cancelled", None),
        (TurnFailed("nan"), 500, "server_error", "turn_failed", None),
        (IntegrityError("row 7 of ann"), 500, "server_error", "internal", None),
        (ZeroDivisionError("row 7 of ann"), 500, "server_error", "internal", None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_an_error_has_its_status_and_openais_shape(
    refusal: Exception, status: int, kind: str, code: str | None, param: str | None
) -> None:
    response = await ask(ScriptedService(refusal=refusal))
    error = response.json()["error"]
    assert response.status_code == status
    assert (error["type"], error["code"], error["param"]) == (kind, code, param)
    assert error["message"] == (str(refusal) if code != "internal" else error["message"])


async def test_the_too_long_prompt_is_told_in_the_words_that_clients_look_for() -> None:
    response = await ask(ScriptedService(refusal=PromptTooLong(tokens=9, limit=5)))
    assert response.json()["error"]["message"] == "prompt is too long: 9 tokens > 5 maximum"


@pytest.mark.parametrize(
    ("refusal", "seconds", "milliseconds"),
    [(Overloaded("full", 2.5), "3", "2500"), (Unavailable("starting", 0.0), "1", "1")],
)
async def test_what_is_worth_a_retry_says_when(
    refusal: Exception, seconds: str, milliseconds: str
) -> None:
    headers = (await ask(ScriptedService(refusal=refusal))).headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == (seconds, milliseconds)


async def test_what_never_works_has_no_retry_header() -> None:
    headers = (await ask(ScriptedService(refusal=InvalidRequest("no")))).headers
    assert "retry-after" not in headers


async def test_a_stream_that_is_refused_is_refused_with_a_status() -> None:
    response = await ask(ScriptedService(refusal=Overloaded("full")), stream=True)
    assert (response.status_code, response.headers["content-type"]) == (429, "application/json")


async def test_our_own_error_is_logged_under_the_id_that_the_client_was_told() -> None:
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as logs:
        response = await ask(ScriptedService(refusal=ZeroDivisionError("row 7 of ann")))
    assert "row 7" not in response.text
    failed = next(line for line in logs if line["event"] == "request failed")
    assert failed["request"] == response.headers["x-request-id"]
    assert isinstance(failed["exc_info"], ZeroDivisionError)


async def test_no_log_line_has_words_of_the_conversation() -> None:
    with structlog.testing.capture_logs() as logs:
        await ask(ScriptedService(), messages=[{"role": "user", "content": "xyzzy"}])
        await ask(ScriptedService(), messages=[{"role": "user", "content": ["xyzzy"]}])
    assert [line["status"] for line in logs] == [200, 400]
    assert "xyzzy" not in str(logs)


async def test_every_answer_has_an_id_of_its_own() -> None:
    one, other = await ask(ScriptedService()), await ask(ScriptedService(), n=2)
    assert re.fullmatch("req_[0-9a-f]{32}", one.headers["x-request-id"])
    assert one.headers["x-request-id"] != other.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/metrics", 404),
    ],
)
async def test_what_is_not_there_is_refused_in_the_same_shape(
    method: str, path: str, status: int
) -> None:
    async with client_of(app_of(ScriptedService())) as client:
        response = await client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["message"] == f"there is no {method} {path}"
    assert "x-request-id" in response.headers


async def test_a_wrong_method_is_told_which_are_right() -> None:
    async with client_of(app_of(ScriptedService())) as client:
        assert (await client.get("/v1/chat/completions")).headers["allow"] == "POST"


def test_every_error_that_a_request_can_raise_is_in_the_table() -> None:
    """What is left out are errors of the store and of start-up, which no request raises."""
    inside = {
        errors.Closed,
        errors.AdapterError,
        errors.AgentCacheError,
        errors.HomeError,
        errors.HomeLocked,
        errors.SegmentUnusable,
        errors.SegmentMissing,
        errors.SegmentCorrupt,
        errors.CatalogueConflict,
        errors.CommitInDoubt,
        errors.IntegrityError,
    }
    ours = {kind for kind in vars(errors).values() if isinstance(kind, type)}
    assert {kind for kind in ours if issubclass(kind, Exception)} - inside == set(TABLE)
