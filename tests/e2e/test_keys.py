"""A server with keys: whose memory is whose, while keys change, and what its log says of it."""

import json
from pathlib import Path
from typing import Any

import httpx

from agentcache.adapters.clock import SystemClock
from agentcache.adapters.disk.key_file import KeyFile
from tests.servers import Server, run, served

SECRET = "The moon is made of a cheese that nobody has ever tasted. "
SAID = [{"role": "user", "content": SECRET * 8}]


def ask(server: Server, key: str, path: str = "chat/completions", **fields: Any) -> httpx.Response:
    body = {"messages": SAID, "max_tokens": 8, "model": _model(server, key), **fields}
    return server.client.post(f"/v1/{path}", json=body, headers={"x-api-key": key})


def _model(server: Server, key: str) -> str:
    told = server.client.get("/v1/models", headers={"x-api-key": key}).json()
    return str(told["data"][0]["id"]) if "data" in told else "none"


def cached(answer: httpx.Response) -> int:
    return int(answer.raise_for_status().headers["x-agentcache-cached-tokens"])


def test_memory_is_a_tenants_whatever_becomes_of_its_keys_and_no_log_tells_of_it(
    tmp_path: Path, model: Path
) -> None:
    home = tmp_path / "home"
    keys = KeyFile(home / "keys.json", SystemClock())
    home.mkdir(mode=0o700)
    acme, first = keys.add("acme")
    umbrella, other = keys.add("umbrella")
    file = ("--api-keys", home / "keys.json")
    with served(home, model) as server:
        assert cached(ask(server, first)) == 0
        assert cached(ask(server, first)) > 0
        assert cached(ask(server, other)) == 0  # the same words, of another tenant
        new = json.loads(run("keys", "rotate", acme.id, "--json", *file).stdout)["secret"]
        assert ask(server, first).status_code == 401
        assert cached(ask(server, new)) > 0
        run("keys", "rm", umbrella.id, *file)
        assert ask(server, other).status_code == 401
        streams = {
            "chat/completions": {"stream": True},
            "messages": {"stream": True},
            "responses": {"stream": True, "input": SAID},
            "completions": {"stream": True, "prompt": SECRET},
        }
        told = [ask(server, new, path, **fields).text for path, fields in streams.items()]
        refused = [
            ask(server, new, model=SECRET),
            ask(server, new, n=7),
            ask(server, new, messages=[{"role": SECRET}]),
            ask(server, new, tools=[{"type": SECRET}]),
            ask(server, f"{new}x"),
        ]
        assert [one.status_code for one in refused] == [404, 400, 400, 400, 401]
        assert server.stop() == 0
    log = server.log.read_text()
    assert log.count("status=200") > 12
    assert "status=499" not in log
    assert not [one for one in (SECRET[:20], first, other, new) if one in log]
    assert all(text.strip() for text in told)
