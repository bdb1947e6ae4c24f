"""Agents over HTTP, on the real service."""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from agentcache.adapters.http.app import Door, create_app
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.memory.keyring import MemoryKeyring
from agentcache.domain.access import Access
from tests.limits import file_size_limit
from tests.scripted_service import client_of
from tests.talks import Talk
from tests.whole_service import Whole, whole_service

pytestmark = pytest.mark.anyio
NOTES = "You remember " + "many things " * 20
NAMES = [
    "ann",
    "team/ann",
    "a b",
    "änn 🐈",
    "100%",
    "%2F",
    "../../etc/passwd",
    "x/fork",
    "?a#b",
]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def whole() -> Iterator[Whole]:
    with whole_service() as found:
        yield found


@asynccontextmanager
async def client(whole: Whole, door: Door | None = None) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(create_app(Edge(whole.service, 1_000_000), None, door)) as found:
        yield found


def at(name: str, action: str = "") -> str:
    return f"/v1/agents/{quote(name, safe='')}{'/' if action else ''}{action}"


async def say(http: httpx.AsyncClient, name: str, *said: str, **more: Any) -> httpx.Response:
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(said)]
    body = {"model": "memory", "messages": messages, "max_tokens": 4, **more}
    headers = {"x-agent-id": name.encode()}
    return await http.post("/v1/chat/completions", json=body, headers=headers)


async def make(http: httpx.AsyncClient, name: str = "ann") -> dict[str, Any]:
    response = await http.post("/v1/agents", json={"name": name, "system": NOTES})
    assert response.status_code == 201, response.text
    return dict(response.json())


async def test_an_agent_that_was_made_has_its_conversation_computed_before_it_is_asked(
    whole: Whole,
) -> None:
    async with client(whole) as http:
        made = await make(http)
        assert (made["name"], made["messages"], made["turns"]) == ("ann", 1, 0)
        assert made["bytes"] > 0
        before = whole.telemetry.tokens_forwarded
        messages = [{"role": "system", "content": NOTES}, {"role": "user", "content": "Hi"}]
        body = {"model": "memory", "messages": messages, "max_tokens": 1}
        answer = await http.post("/v1/chat/completions", json=body, headers={"x-agent-id": "ann"})
        prompt = answer.json()["usage"]["prompt_tokens"]
        assert whole.telemetry.tokens_forwarded - before < prompt / 2
        assert int(answer.headers["x-agentcache-cached-tokens"]) > prompt / 2


async def test_an_agent_is_made_once(whole: Whole) -> None:
    async with client(whole) as http:
        await make(http)
        again = await http.post("/v1/agents", json={"name": "ann", "system": "Other"})
    assert again.status_code == 409
    assert again.json()["error"]["code"] == "agent_exists"
    assert again.headers["x-should-retry"] == "false"


async def test_more_of_a_conversation_can_be_computed_in_advance(whole: Whole) -> None:
    async with client(whole) as http:
        await make(http)
        longer = {"system": NOTES, "messages": [{"role": "user", "content": "A long story. " * 20}]}
        prefilled = await http.post(at("ann", "prefill"), json=longer)
    assert prefilled.status_code == 200
    assert prefilled.json()["messages"] == 2
    assert prefilled.json()["hits"] == 1


async def test_an_agent_tells_what_it_holds_and_what_was_said(whole: Whole) -> None:
    async with client(whole) as http:
        answer = (await say(http, "ann", "Tell me of the sea. " * 20)).json()
        agent = (await http.get(at("ann"))).json()
        told = (await http.get(at("ann"), params={"messages": "true"})).json()
    assert agent["tokens"] > 0
    assert agent["model"] == "memory"
    assert agent["tier"] in ("hot", "warm")
    assert agent["used"] == pytest.approx(time.time(), abs=600)
    assert (agent["parent"], agent["pinned"], agent["expires"]) == (None, False, None)
    assert agent["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert "history" not in agent
    assert told["history"][-1] == {
        "role": "assistant",
        "content": answer["choices"][0]["message"]["content"],
    }


async def test_an_agents_hit_rate_is_the_share_of_its_prompts_that_was_not_computed_again(
    whole: Whole,
) -> None:
    said = ["Tell me of the sea. " * 20]
    async with client(whole) as http:
        first = (await say(http, "ann", *said)).json()
        assert (await http.get(at("ann"))).json()["hit_rate"] == 0
        said += [first["choices"][0]["message"]["content"], "And of the sky?"]
        second = (await say(http, "ann", *said)).json()
        agent = (await http.get(at("ann"))).json()
    asked = first["usage"]["prompt_tokens"] + second["usage"]["prompt_tokens"]
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert agent["hit_rate"] == pytest.approx(cached / asked, abs=1e-4)
    assert agent["hit_rate"] > 0.3


async def test_agents_are_listed_by_name_a_page_at_a_time(whole: Whole) -> None:
    async with client(whole) as http:
        for name in ("cat", "ann", "bob"):
            await say(http, name, "Hi")
        everyone = (await http.get("/v1/agents")).json()
        first = (await http.get("/v1/agents", params={"limit": 2})).json()
        last = (await http.get("/v1/agents", params={"limit": 2, "after": "bob"})).json()
    assert [one["name"] for one in everyone["data"]] == ["ann", "bob", "cat"]
    assert ([one["name"] for one in first["data"]], first["has_more"]) == (["ann", "bob"], True)
    assert ([one["name"] for one in last["data"]], last["has_more"]) == (["cat"], False)


@pytest.mark.parametrize(
    "limit", ["0", "-1", "x", "1001", "", "९", "9" * 5000, "0" * 8 + "1" + "0" * 9]
)
async def test_a_page_of_a_strange_length_is_refused(whole: Whole, limit: str) -> None:
    async with client(whole) as http:
        refused = await http.get("/v1/agents", params={"limit": limit})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "limit")


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("GET", "/v1/agents", "nameless"),
        ("GET", "/v1/agents/ann", "messages"),
        ("POST", "/v1/agents/bob/import", "replace"),
    ],
)
async def test_what_is_neither_true_nor_false_is_refused(
    whole: Whole, method: str, path: str, name: str
) -> None:
    async with client(whole) as http:
        await make(http)
        refused = await http.request(method, path, params={name: "maybe"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, name)


@pytest.mark.parametrize("name", NAMES)
async def test_an_agent_of_any_name_is_found_by_it(whole: Whole, name: str) -> None:
    async with client(whole) as http:
        assert (await make(http, name))["name"] == name
        assert (await http.get(at(name))).json()["name"] == name
        forked = await http.post(at(name, "fork"), json={"name": f"{name}/2"})
        assert forked.json()["parent"] == name
        assert (await http.delete(at(name))).json()["deleted"]
        assert (await http.get(at(name))).status_code == 404
        assert (await http.get(at(f"{name}/2"))).status_code == 200


async def test_slashes_in_a_name_need_no_encoding_where_they_are_clear(whole: Whole) -> None:
    async with client(whole) as http:
        await make(http, "team/ann")
        assert (await http.get("/v1/agents/team/ann")).json()["name"] == "team/ann"
        await http.post("/v1/agents/team/ann/pin", json={"pinned": True})
        assert (await http.get("/v1/agents/team/ann")).json()["pinned"]


async def test_a_fork_goes_its_own_way(whole: Whole) -> None:
    async with client(whole) as http:
        await say(http, "ann", "Tell me of the sea. " * 20)
        forked = await http.post(at("ann", "fork"), json={"name": "bob"})
        assert (forked.status_code, forked.json()["parent"]) == (201, "ann")
        assert forked.json()["shared_bytes"] == forked.json()["bytes"] > 0
        again = await http.post(at("ann", "fork"), json={"name": "bob"})
        assert again.status_code == 409


async def test_turns_are_taken_back(whole: Whole) -> None:
    async with client(whole) as http:
        first = (await say(http, "ann", "One")).json()["choices"][0]["message"]["content"]
        await say(http, "ann", "One", first, "Two")
        assert (await http.get(at("ann"))).json()["turns"] == 2
        rewound = await http.post(at("ann", "rewind"), json={"turns": 1})
        assert (rewound.json()["turns"], rewound.json()["messages"]) == (1, 2)
        refused = await http.post(at("ann", "rewind"), json={"turns": 5})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "turns")


async def test_an_agent_is_pinned_and_given_an_end_each_by_itself(whole: Whole) -> None:
    async with client(whole) as http:
        await make(http)
        pinned = (await http.post(at("ann", "pin"), json={"pinned": True})).json()
        assert (pinned["pinned"], pinned["expires"]) == (True, None)
        ending = (await http.post(at("ann", "pin"), json={"ttl": 3600})).json()
        assert ending["pinned"]
        assert ending["expires"] == pytest.approx(time.time() + 3600, abs=60)
        free = (await http.post(at("ann", "pin"), json={"ttl": None, "pinned": False})).json()
        assert (free["pinned"], free["expires"]) == (False, None)


@pytest.mark.parametrize(
    ("action", "body"),
    [
        ("fork", {"name": ""}),
        ("fork", {"name": "x" * 257}),
        ("fork", {"name": "~a"}),
        ("fork", {}),
        ("rewind", {"turns": 0}),
        ("rewind", {"turns": "2"}),
        ("pin", {"ttl": -1}),
        ("pin", {"pinnd": True}),
        ("prefill", {}),
        ("prefill", {"messages": [{"role": "user"}]}),
    ],
)
async def test_what_makes_no_sense_is_refused_and_changes_nothing(
    whole: Whole, action: str, body: dict[str, Any]
) -> None:
    async with client(whole) as http:
        before = await make(http)
        refused = await http.post(at("ann", action), json=body)
        assert refused.status_code == 400, refused.text
        after = (await http.get(at("ann"))).json()
    assert after["tokens"] == before["tokens"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", at("nobody"), 404),
        ("DELETE", at("nobody"), 404),
        ("POST", at("nobody", "fork"), 404),
        ("POST", at("nobody", "rewind"), 404),
        ("POST", at("nobody", "pin"), 404),
        ("POST", at("nobody"), 405),
        ("GET", at("nobody", "fork"), 404),
        ("GET", "/v1/agents/%ff", 400),
        ("GET", "/v1/agents/", 404),
    ],
)
async def test_who_is_not_there_is_not_found(
    whole: Whole, method: str, path: str, status: int
) -> None:
    body = {"name": "b", "turns": 1, "pinned": True}
    async with client(whole) as http:
        fields = {key: body[key] for key in _fields(path)}
        response = await http.request(method, path, json=fields if method == "POST" else None)
    assert response.status_code == status, response.text
    assert response.json()["error"]["message"]


async def test_an_agent_that_answers_is_not_changed_and_when_to_try_again_is_told() -> None:
    with whole_service(end_rate=0.0, context=10_000_000) as whole:
        async with client(whole) as http:
            await make(http)
            ask = Talk("ann").ask("Tell me all", max_tokens=9_000_000)
            turn = await whole.service.begin(ask)
            refused = await http.delete(at("ann"))
            await turn.cancel()
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "agent_busy")
        assert int(refused.headers["retry-after"]) >= 1


async def test_tenants_see_their_own_agents_alone_and_only_administrators_delete(
    whole: Whole,
) -> None:
    keyring = MemoryKeyring(
        {"a": Access("red"), "b": Access("blue"), "r": Access("red", admin=True)}
    )
    async with client(whole, Door(keyring)) as http:
        red, blue, root = ({"authorization": f"Bearer {key}"} for key in "abr")
        body = {"name": "ann", "system": NOTES}
        assert (await http.post("/v1/agents", json=body, headers=red)).status_code == 201
        assert (await http.get("/v1/agents", headers=blue)).json()["data"] == []
        assert (await http.get(at("ann"), headers=blue)).status_code == 404
        assert (await http.delete(at("ann"), headers=red)).status_code == 403
        assert (await http.get(at("ann"))).status_code == 401
        assert (await http.delete(at("ann"), headers=root)).is_success


async def test_an_exported_agent_is_imported_by_another_tenant_and_by_nobody_without_a_key(
    whole: Whole,
) -> None:
    keyring = MemoryKeyring({"a": Access("red"), "b": Access("blue")})
    async with client(whole, Door(keyring)) as http:
        red, blue = ({"authorization": f"Bearer {key}"} for key in "ab")
        await http.post("/v1/agents", json={"name": "ann", "system": NOTES}, headers=red)
        assert (await http.get(at("ann", "export"), headers=blue)).status_code == 404
        assert (await http.get(at("ann", "export"))).status_code == 401
        file = (await http.get(at("ann", "export"), headers=red)).content
        assert (await http.post(at("ann", "import"), content=file)).status_code == 401
        told = await http.post(at("bob", "import"), content=file, headers=blue)
        assert (told.status_code, told.json()["name"]) == (201, "bob")
        before = whole.telemetry.tokens_forwarded
        messages = [{"role": "system", "content": NOTES}, {"role": "user", "content": "Hi"}]
        body = {"model": "memory", "messages": messages, "max_tokens": 1}
        await http.post("/v1/chat/completions", json=body, headers=blue | {"x-agent-id": "bob"})
        assert whole.telemetry.tokens_forwarded - before < 40
        for key, name in ((red, "ann"), (blue, "bob")):
            listed = (await http.get("/v1/agents", headers=key)).json()["data"]
            assert [one["name"] for one in listed] == [name]


async def test_a_disk_without_room_for_an_agents_file_is_told_and_passes(whole: Whole) -> None:
    async with client(whole) as http:
        await make(http)
        file = (await http.get(at("ann", "export"))).content
        with file_size_limit(1000):
            for refused in (
                await http.get(at("ann", "export")),
                await http.post(at("bob", "import"), content=file),
            ):
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_room")
                assert int(refused.headers["retry-after"]) >= 1
        assert (await http.get(at("ann", "export"))).content == file
        assert (await http.post(at("bob", "import"), content=file)).status_code == 201


def _fields(path: str) -> tuple[str, ...]:
    return {"fork": ("name",), "rewind": ("turns",), "pin": ("pinned",)}.get(
        path.rsplit("/", 1)[-1], ()
    )


async def test_an_agent_has_the_codec_that_it_was_made_with(whole: Whole) -> None:
    async with client(whole) as http:
        body = {"name": "ann", "system": NOTES, "codec": "q4"}
        made = await http.post("/v1/agents", json=body)
        assert (made.status_code, made.json()["codec"]) == (201, "q4")
        answer = await say(http, "ann", NOTES, "one")
        assert answer.status_code == 200
        await http.post(at("ann", "fork"), json={"name": "bob"})
        await make(http, "eve")
        listed = (await http.get("/v1/agents")).json()["data"]
        assert {one["name"]: one["codec"] for one in listed} == {
            "ann": "q4",
            "bob": "q4",
            "eve": "native",
        }


async def test_a_header_chooses_the_codec_of_an_agent(whole: Whole) -> None:
    async with client(whole) as http:
        body = {"model": "memory", "messages": [{"role": "user", "content": NOTES}]}
        headers = {"x-agent-id": "ann", "x-agent-codec": "q8"}
        answer = await http.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200
        assert (await http.get(at("ann"))).json()["codec"] == "q8"
        headers["x-agent-codec"] = "k8v4"
        said = answer.json()["choices"][0]["message"]
        body["messages"] += [said, {"role": "user", "content": "more"}]
        moved = await http.post("/v1/chat/completions", json=body, headers=headers)
        assert moved.headers["x-agentcache-miss"] == "codec_changed"
        assert (await http.get(at("ann"))).json()["codec"] == "k8v4"


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        (
            {"x-agent-id": "ann", "x-agent-codec": "zip"},
            "there is no codec 'zip'; there are native",
        ),
        ({"x-agent-id": "ann", "x-agent-codec": ""}, "there is no codec ''"),
        ({"x-agent-codec": "q8"}, "X-Agent-ID"),
    ],
)
async def test_a_codec_that_cannot_be_is_refused(
    whole: Whole, headers: dict[str, str], problem: str
) -> None:
    async with client(whole) as http:
        body = {"model": "memory", "messages": [{"role": "user", "content": "hello"}]}
        refused = await http.post("/v1/chat/completions", json=body, headers=headers)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "codec")
        assert problem in refused.json()["error"]["message"]


async def test_a_codec_of_the_wrong_type_is_refused(whole: Whole) -> None:
    async with client(whole) as http:
        refused = await http.post("/v1/agents", json={"name": "ann", "codec": 8})
        assert refused.status_code == 400
