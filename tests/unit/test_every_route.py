"""What holds on every route there is, those among them that will be added one day."""

import gzip
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from structlog.testing import capture_logs

from agentcache.adapters.disk.key_file import KeyFile
from agentcache.adapters.http.app import Door, create_app
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.gate import LOOPBACK, is_open
from agentcache.adapters.http.operations import OPERATIONS
from agentcache.adapters.memory.clock import ManualClock
from agentcache.adapters.memory.keyring import MemoryKeyring
from agentcache.domain.access import Access
from agentcache.ports.keyring import Keyring
from tests.scripted_service import ScriptedService
from tests.unit.test_http_swap import ASKS
from tests.whole_service import whole_service

pytestmark = pytest.mark.anyio
LIMIT = 20_000
NOBODY, ADMIN = "nobody-s3cret", "admin-s3cret"
KEYS = MemoryKeyring({NOBODY: Access("acme"), ADMIN: Access("acme", admin=True)})
SHIELDS = ("content-security-policy", "referrer-policy", "x-content-type-options", "x-request-id")
SECRET = "the moon is made of cheese"
TAKEN = {"name": "ann", "id": "resp_x", "model": "tiny"}  # what stands in the place of a parameter


class Told:
    """Metrics that are the same all the time."""

    def exposition(self) -> tuple[bytes, str]:
        return b"agentcache 1\n", "text/plain"


def app_with(keys: Keyring | None, hosts: frozenset[str] = frozenset()) -> Starlette:
    door = Door(keys, hosts, ("https://app.example",))
    return create_app(Edge(ScriptedService(), LIMIT), Told(), door)


def filled(path: str) -> str:
    return re.sub(r"\{(\w+)[^}]*\}", lambda found: TAKEN[found[1]], path)


def served() -> list[tuple[str, str]]:
    """Every method of every route of the application, and every operation that one stands for."""
    found = set()
    for route in app_with(None).routes:
        assert isinstance(route, Route)
        found |= {(method, filled(route.path)) for method in route.methods or ()}
    told = (operation.split(" ") for operation in OPERATIONS)
    return sorted(found | {(method, filled(path)) for method, path in told})


ROUTES = served()
GUARDED = [one for one in ROUTES if not is_open(one[1])]
ADMINS = [
    (method, filled(path))
    for method, path in (one.split(" ") for one, told in OPERATIONS.items() if told.admin)
]
BODIES = [
    tuple(name.split(" "))
    for name, told in OPERATIONS.items()
    if told.body not in (None, bytes)  # an agent's file may be as large as the disk has room
]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _logs() -> Iterator[None]:
    """The scripted service knows no agents: those errors are our own, and slow to write."""
    with capture_logs():
        yield


def client_of(app: Starlette, host: str = "localhost") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=f"http://{host}")


def kind_of(answer: httpx.Response) -> str:
    """The type of an error, in whichever dialect it is told."""
    return str(answer.json()["error"]["type"])


def added(keys: KeyFile) -> str:
    return keys.add("acme", admin=True)[1]


def revoked(keys: KeyFile) -> str:
    key, secret = keys.add("acme", admin=True)
    keys.remove(key.id)
    return secret


def rotated(keys: KeyFile) -> str:
    key, secret = keys.add("acme", admin=True)
    keys.rotate(key.id)
    return secret


@pytest.mark.parametrize("made", [None, revoked, rotated])
async def test_a_key_that_is_missing_or_not_in_force_any_more_opens_nothing(
    tmp_path: Path, made: Callable[[KeyFile], str] | None
) -> None:
    keys = KeyFile(tmp_path / "keys.json", ManualClock())
    good = {"x-api-key": added(keys)}
    headers = {"x-api-key": made(keys)} if made else {}
    async with client_of(app_with(keys)) as client:
        for method, path in GUARDED:
            refused = await client.request(method, path, headers=headers)
            told = (refused.status_code, refused.headers.get("www-authenticate"))
            assert told == (401, "Bearer"), path
            assert method == "HEAD" or kind_of(refused) == "authentication_error"
            assert (await client.request(method, path, headers=good)).status_code != 401, path


async def test_what_is_for_admins_takes_admin_rights() -> None:
    async with client_of(app_with(KEYS)) as client:
        for method, path in ADMINS:
            refused = await client.request(method, path, json={}, headers={"x-api-key": NOBODY})
            let_in = await client.request(method, path, json={}, headers={"x-api-key": ADMIN})
            assert (refused.status_code, kind_of(refused)) == (403, "permission_error"), path
            assert let_in.status_code != 403, path
    assert ADMINS


async def test_no_route_answers_to_a_foreign_host_or_a_foreign_page() -> None:
    headers = {"x-api-key": ADMIN, "origin": "https://app.example.evil"}
    asked = {**headers, "access-control-request-method": "POST"}
    async with client_of(app_with(KEYS, LOOPBACK)) as client:
        for method, path in ROUTES:
            rebound = await client.request(
                method, path, headers={**headers, "host": "evil.example"}
            )
            assert rebound.status_code == 403, path
            for told in (
                await client.request(method, path, headers=headers),
                await client.options(path, headers=asked),
            ):
                assert "access-control-allow-origin" not in told.headers, path


@pytest.mark.parametrize("key", ["", ADMIN])
async def test_every_answer_and_every_error_carries_the_shields(key: str) -> None:
    async with client_of(app_with(KEYS)) as client:
        for method, path in [*ROUTES, ("PATCH", "/v1/models"), ("GET", "/no")]:
            answer = await client.request(method, path, headers={"x-api-key": key})
            assert not [name for name in SHIELDS if name not in answer.headers], path
            assert answer.headers["cache-control"] == "no-store", path


async def test_a_stream_carries_the_shields_too() -> None:
    turns = [path for _, path in BODIES if OPERATIONS[f"POST {path}"].turn]
    async with client_of(app_with(KEYS)) as client:
        for path in turns:
            body = ASKS[path] | {"model": "tiny", "stream": True}
            answer = await client.post(path, json=body, headers={"x-api-key": NOBODY})
            assert answer.headers["content-type"].startswith("text/event-stream"), path
            assert not [name for name in SHIELDS if name not in answer.headers], path
    assert turns


async def _in_pieces(content: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(content), 1000):
        yield content[at : at + 1000]


_HUGE = b'{"user": "' + b"x" * 20 * LIMIT + b'"}'
_BOMB = gzip.compress(b" " * 10_000_000)
BODY_CASES: dict[str, tuple[Callable[[], Any], dict[str, str], set[int]]] = {
    "too large": (lambda: _HUGE, {}, {413}),
    "too large, without a length": (lambda: _in_pieces(_HUGE), {}, {413}),
    "a bomb": (lambda: _BOMB, {"content-encoding": "gzip"}, {413}),
    "a bomb twice packed": (
        lambda: gzip.compress(_BOMB),
        {"content-encoding": "gzip, gzip"},
        {415},
    ),
    "no gzip": (lambda: b"x" * 100, {"content-encoding": "gzip"}, {400}),
    "half of a gzip": (lambda: _BOMB[:40], {"content-encoding": "gzip"}, {400}),
    "a coding that is not known": (lambda: b"x", {"content-encoding": "deflate"}, {415}),
    "too deep": (lambda: b'{"a":' * 3000 + b"1" + b"}" * 3000, {}, {400}),
    "no JSON": (lambda: b"\x00\xff", {}, {400}),
    "nothing": (lambda: b"", {}, {400}),
}


@pytest.mark.parametrize("case", BODY_CASES)
async def test_no_body_does_more_than_be_refused(case: str) -> None:
    content, headers, statuses = BODY_CASES[case]
    headers = {**headers, "x-api-key": ADMIN}
    async with client_of(app_with(KEYS)) as client:
        for method, path in BODIES:
            answer = await client.request(method, filled(path), content=content(), headers=headers)
            assert answer.status_code in statuses, path
            assert kind_of(answer) in ("invalid_request_error", "request_too_large"), path


OWN: dict[str, Any] = {  # bodies with which an operation would be done, were it one's own agent
    "/v1/agents": {"name": "eve"},
    "/v1/agents/ann/fork": {"name": "bob"},
    "/v1/agents/ann/rewind": {"turns": 1},
    "/v1/agents/ann/pin": {"pinned": True},
}


async def test_no_operation_tells_or_changes_anything_of_another_tenant() -> None:
    keys = MemoryKeyring({"a": Access("acme", admin=True), "u": Access("umbrella", admin=True)})
    acme, umbrella = {"x-api-key": "a"}, {"x-api-key": "u"}
    asked = {"model": "memory", "input": SECRET, "max_output_tokens": 4}
    with whole_service() as whole:
        app = create_app(Edge(whole.service, LIMIT), Told(), Door(keys))
        async with client_of(app) as client:
            headers = {**acme, "x-agent-id": "ann"}
            made = (await client.post("/v1/responses", json=asked, headers=headers)).json()["id"]
            mine = [f"/v1/responses/{made}", "/v1/agents/ann?messages=true"]
            before = [(await client.get(path, headers=acme)).json() for path in mine]
            for operation in OPERATIONS:
                method, template = operation.split(" ")
                path = filled(template).replace("resp_x", made)
                told = await client.request(method, path, json=OWN.get(path), headers=umbrella)
                assert told.status_code < 500, operation
                assert SECRET not in told.text, operation
                theirs = "{name}" in template or "{id}" in template
                named = OPERATIONS[operation].body is not bytes  # a file is looked at first
                assert not (theirs and named) or told.status_code in (400, 404), operation
            after = [(await client.get(path, headers=acme)).json() for path in mine]
    assert SECRET in str(before)
    assert after == before
