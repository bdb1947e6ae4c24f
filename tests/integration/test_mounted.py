"""The HTTP API inside another program: under a prefix, within its lifespan, with its keys."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import ASGIApp

import agentcache
from agentcache import Access
from agentcache.adapters.clock import SystemClock
from agentcache.adapters.disk.key_file import KeyFile
from agentcache.adapters.memory.engine import MemoryEngine
from agentcache.adapters.memory.model_source import MemoryModelSource
from agentcache.adapters.memory.tokenizer import END, VOCABULARY, MemoryTokenizer
from agentcache.domain.errors import HomeError
from agentcache.ports.model_source import ModelFolder

ASK = {"model": "memory", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
KEYS = {"secret-a": Access("acme", admin=True), "secret-b": Access("umbrella")}
Lifespan = Callable[[Any], AbstractAsyncContextManager[None]]


async def greet(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def starlette_host(lifespan: Lifespan) -> ASGIApp:
    return Starlette(routes=[Route("/hello", greet)], lifespan=lifespan)


def fastapi_host(lifespan: Lifespan) -> ASGIApp:
    app = FastAPI(lifespan=lifespan)
    app.add_route("/hello", greet)
    return app


@pytest.fixture(params=[starlette_host, fastapi_host], ids=["starlette", "fastapi"])
def host(request: pytest.FixtureRequest) -> Callable[[Lifespan], ASGIApp]:
    made: Callable[[Lifespan], ASGIApp] = request.param
    return made


@contextmanager
def mounted(
    home: Path, make: Callable[[Lifespan], ASGIApp] = starlette_host, **options: Any
) -> Iterator[TestClient]:
    """A program that mounts the API under /llm; its lifespan opens and closes the cache."""
    source = MemoryModelSource([ModelFolder("toy", home / "toy", bytes(32))])
    adapters = {
        "load_engine": lambda: MemoryEngine.of(vocabulary=VOCABULARY, ends=frozenset({END})),
        "load_tokenizer": MemoryTokenizer,
        "model_source": lambda: source,
    }

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        async with agentcache.open_async("toy", home, adapters=adapters) as cache:
            app.mount("/llm", agentcache.asgi(cache, **options))
            yield

    with TestClient(make(lifespan)) as client:
        yield client


def ask(client: TestClient, key: str = "", agent: str = "ann") -> Any:
    headers = {"x-agent-id": agent} | ({"authorization": f"Bearer {key}"} if key else {})
    return client.post("/llm/v1/chat/completions", json=ASK, headers=headers)


def names(client: TestClient, key: str) -> list[str]:
    told = client.get("/llm/v1/agents", headers={"x-api-key": key})
    return [one["name"] for one in told.json()["data"]]


class TestLifespan:
    def test_it_answers_under_its_prefix_beside_the_hosts_own_routes(
        self, host: Callable[[Lifespan], ASGIApp], tmp_path: Path
    ) -> None:
        with mounted(tmp_path, host) as client:
            assert client.get("/hello").text == "hello"
            assert ask(client).status_code == 200
            assert client.get("/llm/health/ready").status_code == 200
            assert client.get("/v1/models").status_code == 404

    def test_the_home_is_free_again_and_remembers_when_the_host_has_ended(
        self, host: Callable[[Lifespan], ASGIApp], tmp_path: Path
    ) -> None:
        for known in ([], ["ann"]):
            with mounted(tmp_path, host) as client:
                assert names(client, "") == known
                ask(client)


class TestKeys:
    def test_nobody_comes_in_without_a_key_but_probes_and_the_hosts_own_routes_do(
        self, host: Callable[[Lifespan], ASGIApp], tmp_path: Path
    ) -> None:
        with mounted(tmp_path, host, api_keys=KEYS) as client:
            assert ask(client).status_code == 401
            assert ask(client, "secret-c").status_code == 401
            assert client.get("/llm/metrics").status_code == 401
            assert client.get("/llm/health/live").status_code == 200
            assert client.get("/hello").status_code == 200
            assert ask(client, "secret-a").status_code == 200

    def test_each_key_works_with_the_agents_of_its_tenant(self, tmp_path: Path) -> None:
        with mounted(tmp_path, api_keys=KEYS) as client:
            ask(client, "secret-a", "ann")
            ask(client, "secret-b", "bob")
            assert (names(client, "secret-a"), names(client, "secret-b")) == (["ann"], ["bob"])
            gone = client.delete("/llm/v1/agents/bob", headers={"x-api-key": "secret-b"})
            assert gone.status_code == 403

    def test_a_key_file_is_gone_by_as_it_is_now(self, tmp_path: Path) -> None:
        keys = KeyFile(tmp_path / "keys.json", SystemClock())
        key, secret = keys.add("acme", admin=False)
        with mounted(tmp_path / "home", api_keys=keys.path) as client:
            assert ask(client, secret).status_code == 200
            keys.remove(key.id)
            assert ask(client, secret).status_code == 401

    def test_a_host_with_accounts_of_its_own_brings_a_keyring(self, tmp_path: Path) -> None:
        class Accounts:
            def access(self, secret: str) -> Access | None:
                return Access(secret.upper()) if secret == "ada" else None

        with mounted(tmp_path, api_keys=Accounts()) as client:
            assert ask(client, "ada").status_code == 200
            assert ask(client, "eve").status_code == 401

    def test_no_keys_at_all_let_nobody_in(self, tmp_path: Path) -> None:
        with mounted(tmp_path, api_keys={}) as client:
            assert ask(client, "secret-a").status_code == 401


class TestLimits:
    def test_metrics_count_what_was_answered_unless_they_are_not_wanted(
        self, tmp_path: Path
    ) -> None:
        with mounted(tmp_path) as client:
            ask(client)
            told = client.get("/llm/metrics")
            assert told.headers["content-type"].startswith("text/plain")
            assert "agentcache_turns_total" in told.text
        with mounted(tmp_path, metrics=False) as client:
            assert client.get("/llm/metrics").status_code == 404

    def test_other_hosts_than_those_allowed_are_not_answered_to(self, tmp_path: Path) -> None:
        with mounted(tmp_path, allowed_hosts=["Llm.Example"]) as client:
            assert ask(client).status_code == 403
            client.headers["host"] = "llm.example:8000"
            assert ask(client).status_code == 200

    def test_browsers_of_the_named_origins_may_ask(self, tmp_path: Path) -> None:
        with mounted(tmp_path, cors_origins=["https://app.example"]) as client:
            for origin, allowed in (("https://app.example", True), ("https://evil.example", False)):
                told = client.options(
                    "/llm/v1/chat/completions",
                    headers={"origin": origin, "access-control-request-method": "POST"},
                )
                assert (told.headers.get("access-control-allow-origin") == origin) is allowed

    def test_turns_over_the_rate_are_told_when_to_come_back(self, tmp_path: Path) -> None:
        with mounted(tmp_path, rate_limit="1/hour") as client:
            assert ask(client).status_code == 200
            refused = ask(client)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) > 0

    def test_larger_bodies_are_refused(self, tmp_path: Path) -> None:
        with mounted(tmp_path, max_body="2KB") as client:
            long = {**ASK, "messages": [{"role": "user", "content": "x" * 3000}]}
            assert client.post("/llm/v1/chat/completions", json=long).status_code == 413
            assert ask(client).status_code == 200


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"api_keys": "nowhere/keys.json"}, HomeError, "no such key file"),
        ({"api_keys": 7}, TypeError, "a Keyring, not int"),
        ({"rate_limit": "often"}, ValueError, "write it like"),
        ({"cors_origins": ["*"]}, ValueError, "write origins like"),
        ({"max_body": 3}, ValueError, "max_body is 3"),
    ],
)
def test_what_cannot_work_is_told_when_it_is_mounted(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told), mounted(tmp_path, **options):
        pass
