"""Conversations that mean harm, in every dialect, over the whole service: each is answered to its
end or refused for a reason, and the service is as well as before.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from starlette.testclient import TestClient

from agentcache.adapters.http.app import create_app
from agentcache.adapters.http.edge import Edge
from tests.hostile import DIALECTS, Hostile, hostile
from tests.whole_service import whole_service

ENDS = {
    "/v1/chat/completions": "data: [DONE]\n\n",
    "/v1/completions": "data: [DONE]\n\n",
    "/v1/messages": 'data: {"type":"message_stop"}\n\n',
    "/v1/responses": "}\n\n",
}


@contextmanager
def served() -> Iterator[TestClient]:
    with whole_service() as whole:
        app = create_app(Edge(whole.service, 1_000_000))
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client
        assert whole.service.health().ready


def check_refusal(path: str, answer: Any) -> None:
    """It is of the client's making, and says why in the dialect."""
    assert answer.status_code < 500 or (
        answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
    ), answer.text
    body = answer.json()
    assert body["error"]["message"]
    assert (body.get("type") == "error") == path.startswith("/v1/messages")


def check_answer(path: str, answer: Any) -> None:
    if not answer.headers["content-type"].startswith("text/event-stream"):
        assert answer.json()
        return
    events = answer.text.split("\n\n")
    assert answer.text.endswith(ENDS[path])
    assert not any(_is_error(event) for event in events), answer.text
    if path == "/v1/responses":
        assert events[-2].startswith(("event: response.completed", "event: response.incomplete"))


def _is_error(event: str) -> bool:
    return event.startswith(("event: error", 'data: {"error"'))


@pytest.mark.parametrize("path", DIALECTS)
def test_whatever_is_said_is_answered_or_refused(path: str) -> None:
    with served() as client:

        @settings(suppress_health_check=list(HealthCheck))
        @given(hostile)
        def run(one: Hostile) -> None:
            body = json.dumps(DIALECTS[path](one))
            answer = client.post(path, content=body.encode())
            (check_answer if answer.is_success else check_refusal)(path, answer)

        run()


@pytest.mark.parametrize("path", DIALECTS)
def test_an_honest_conversation_is_answered_by_the_same_server(path: str) -> None:
    honest = Hostile([("user", "Hi", None)], [], {})
    with served() as client:
        assert client.post(path, json=DIALECTS[path](honest)).is_success
