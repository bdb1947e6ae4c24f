"""Agents keep their codecs, whatever happens to the server and to its default."""

from pathlib import Path
from typing import Any

import httpx

from tests.servers import Server, served

CODECS = {"ann": None, "bob": "q4", "cy": "native"}


def ask(server: Server, name: str, talk: list[Any], codec: str | None = None) -> httpx.Response:
    model = server.client.get("/v1/models").json()["data"][0]["id"]
    headers = {"x-agent-id": name} | ({"x-agent-codec": codec} if codec else {})
    body = {"model": model, "messages": talk, "max_tokens": 6, "temperature": 0}
    answer = server.client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    talk += [answer.json()["choices"][0]["message"], {"role": "user", "content": "more"}]
    return answer


def test_agents_of_several_codecs_go_on_after_a_kill_under_another_default(
    tmp_path: Path, model: Path
) -> None:
    talks = {name: [{"role": "user", "content": "tell me " * 30}] for name in CODECS}
    with served(tmp_path / "home", model, "--codec", "q8") as server:
        for name, codec in CODECS.items():
            ask(server, name, talks[name], codec)
        server.kill()
    with served(tmp_path / "home", model, "--codec", "f16") as server:
        for name, talk in talks.items():
            answer = ask(server, name, talk)
            assert "x-agentcache-miss" not in answer.headers
            assert answer.headers["x-agentcache-tier"] == "cold"
            assert int(answer.headers["x-agentcache-cached-tokens"]) > 240
        found = server.client.get("/v1/agents").json()["data"]
        codecs = {one["name"]: one["codec"] for one in found}
        assert codecs == {"ann": "q8", "bob": "q4", "cy": "native"}
