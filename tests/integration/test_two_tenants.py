"""Two tenants on one server: whatever both do, each is answered as if it were alone there."""

import re
from collections.abc import Sequence
from typing import Any

import pytest
from attrs import define, field
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from agentcache.adapters.http.app import Door, create_app
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.memory.keyring import MemoryKeyring
from agentcache.domain.access import Access
from tests.whole_service import whole_service

KEYS = MemoryKeyring(
    {
        "acme-admin": Access("acme", admin=True),
        "acme": Access("acme"),
        "umbrella-admin": Access("umbrella", admin=True),
        "umbrella": Access("umbrella"),
    }
)
OTHER = {"acme": "umbrella", "umbrella": "acme"}
NOBODYS = "resp_" + "0" * 32
SYSTEM = "The secret of the house is a number. " * 4  # the same for both: what could be shared
SAID = ["Hi", "And then?", "Tell me the secret"]
NAMES = ["ann", "bob", "team/x"]
MOMENTS = {"created", "created_at", "completed_at", "used", "expires"}

names, said = st.sampled_from(NAMES), st.sampled_from(SAID)
actions = st.one_of(
    st.tuples(st.sampled_from(["chat", "messages", "responses", "completions"]), names, said),
    st.tuples(st.sampled_from(["go on", "steal on"]), names, said),
    st.tuples(st.sampled_from(["look up", "steal", "take away"]), names, said),
    st.tuples(st.sampled_from(["list", "tell", "fork", "rewind", "pin", "forget"]), names, said),
    st.tuples(st.sampled_from(["forget as nobody", "swap as nobody"]), names, said),
)
Action = tuple[str, str, str]
stories = st.lists(st.tuples(st.sampled_from(sorted(OTHER)), actions), max_size=14)


@define(eq=False)
class House:
    """A server, the last response of each tenant, and all that each was told."""

    client: TestClient
    last: dict[str, str] = field(factory=dict)
    told: dict[str, list[Any]] = field(factory=lambda: {tenant: [] for tenant in OTHER})

    def act(self, tenant: str, action: Action) -> None:
        method, path, body, key = self._request(tenant, action)
        headers = {"x-api-key": key, "x-agent-id": action[1]}
        answer = self.client.request(method, path, json=body, headers=headers)
        if path == "/v1/responses" and answer.is_success:
            self.last[tenant] = answer.json()["id"]
        cached = answer.headers.get("x-agentcache-cached-tokens")
        self.told[tenant].append((action, answer.status_code, cached, _plain(answer.json())))

    def _request(self, tenant: str, action: Action) -> tuple[str, str, Any, str]:
        what, name, text = action
        agent = "/v1/agents/" + name.replace("/", "%2F")
        talk = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
        turn = {"model": "memory", "temperature": 0}
        mine = self.last.get(tenant, NOBODYS)
        others = self.last.get(OTHER[tenant], NOBODYS)
        short, admin = turn | {"max_tokens": 5}, f"{tenant}-admin"
        respond = turn | {"max_output_tokens": 5, "input": text}
        known: dict[str, tuple[str, str, Any, str]] = {
            "chat": ("POST", "/v1/chat/completions", short | {"messages": talk}, tenant),
            "messages": ("POST", "/v1/messages", short | {"messages": talk}, tenant),
            "responses": ("POST", "/v1/responses", respond | {"instructions": SYSTEM}, tenant),
            "completions": ("POST", "/v1/completions", short | {"prompt": SYSTEM + text}, tenant),
            "go on": ("POST", "/v1/responses", respond | {"previous_response_id": mine}, tenant),
            "steal on": (
                *("POST", "/v1/responses"),
                *(respond | {"previous_response_id": others}, tenant),
            ),
            "look up": ("GET", f"/v1/responses/{mine}", None, tenant),
            "steal": ("GET", f"/v1/responses/{others}", None, admin),
            "take away": ("DELETE", f"/v1/responses/{others}", None, admin),
            "list": ("GET", "/v1/agents?nameless=true", None, admin),
            "tell": ("GET", f"{agent}?messages=true", None, tenant),
            "fork": ("POST", f"{agent}/fork", {"name": "carl"}, tenant),
            "rewind": ("POST", f"{agent}/rewind", {"turns": 1}, tenant),
            "pin": ("POST", f"{agent}/pin", {"pinned": True}, tenant),
            "forget": ("DELETE", agent, None, admin),
            "forget as nobody": ("DELETE", agent, None, tenant),
            "swap as nobody": ("POST", "/v1/admin/model", {"model": "other"}, tenant),
        }
        return known[what]


def _plain(value: Any, name: str = "") -> Any:
    """What was told, without what is different every time."""
    if isinstance(value, dict):
        return {key: _plain(one, key) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if name in MOMENTS and value is not None:
        return "then"
    return re.sub("[0-9a-f]{32}", "id", value) if isinstance(value, str) else value


def played(story: Sequence[tuple[str, Action]]) -> dict[str, list[Any]]:
    """What each tenant is told in the course of a story."""
    with whole_service() as whole:
        app = create_app(Edge(whole.service, 100_000), door=Door(KEYS))
        with TestClient(app, raise_server_exceptions=False) as client:
            house = House(client)
            for tenant, action in story:
                house.act(tenant, action)
            return house.told


@settings(
    max_examples=max(15, settings.default.max_examples // 2),
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(stories)
@example(
    [
        *(("acme", (what, "ann", SAID[2])) for what in ("chat", "messages", "responses")),
        *(("umbrella", (what, "ann", SAID[2])) for what in ("steal", "steal on", "take away")),
        *(("umbrella", (what, "ann", SAID[2])) for what in ("chat", "list", "tell", "completions")),
        *(("acme", (what, "ann", SAID[2])) for what in ("look up", "go on", "list", "tell")),
    ]
)
def test_each_is_answered_as_if_it_were_alone(story: list[tuple[str, Action]]) -> None:
    together = played(story)
    for tenant in OTHER:
        alone = played([one for one in story if one[0] == tenant])
        assert together[tenant] == alone[tenant]


@pytest.mark.parametrize(
    ("key", "status"), [("acme", 403), ("umbrella-admin", 404), ("acme-admin", 200)]
)
def test_an_agent_is_deleted_by_the_admin_of_its_tenant_alone(key: str, status: int) -> None:
    with whole_service() as whole:
        app = create_app(Edge(whole.service, 100_000), door=Door(KEYS))
        with TestClient(app) as client:
            House(client).act("acme", ("chat", "ann", "Hi"))
            gone = client.delete("/v1/agents/ann", headers={"x-api-key": key})
            left = client.get("/v1/agents/ann", headers={"x-api-key": "acme"})
        assert (gone.status_code, left.status_code) == (status, 404 if status == 200 else 200)
        assert whole.telemetry.refusals == (["forbidden"] if status == 403 else [])


@pytest.mark.parametrize(("key", "status"), [("acme", 403), ("acme-admin", 404)])
def test_another_model_is_loaded_for_admins_alone(key: str, status: int) -> None:
    with whole_service() as whole:
        app = create_app(Edge(whole.service, 100_000), door=Door(KEYS))
        with TestClient(app) as client:
            headers = {"x-api-key": key}
            answer = client.post("/v1/admin/model", json={"model": "other"}, headers=headers)
    assert answer.status_code == status
