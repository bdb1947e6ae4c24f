"""Any schema at all: what comes of it is valid, or was cut by length, or it was refused."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from starlette.testclient import TestClient

from agentcache.adapters.http.app import create_app
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.memory.tokenizer import MemoryTokenizer
from agentcache.ports.grammar import Lexicon
from tests.schemas import schemas
from tests.whole_service import whole_service

ASKED: Any = {
    "model": "memory",
    "messages": [{"role": "user", "content": "Go on. " * 40}],
    "max_tokens": 60,
}

SAID = '"' + "ab" * 9


def ascii_only() -> Lexicon:
    """The words of the tokenizer, without the bytes that are no ASCII."""
    known = MemoryTokenizer().lexicon()
    pieces = [piece if piece.isascii() else b"" for piece in known.pieces]
    return Lexicon(pieces, known.control, known.encode)


@contextmanager
def answering(lexicon: Callable[[], Lexicon] | None = None) -> Iterator[TestClient]:
    with whole_service(lexicon=lexicon) as whole:
        with TestClient(create_app(Edge(whole.service, 1_000_000))) as client:
            yield client
        assert whole.service.health().ready


def _finite(text: str) -> float:
    number = float(text)
    assert abs(number) < 1e308, text
    return number


def ask(client: TestClient, schema: Any, **more: Any) -> Any:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return client.post("/v1/chat/completions", json=ASKED | {"response_format": form} | more)


def test_every_answer_is_valid_or_cut_by_length() -> None:
    whole_answers = 0
    with answering() as client:

        @settings(suppress_health_check=list(HealthCheck))
        @given(schemas)
        def run(schema: Any) -> None:
            nonlocal whole_answers
            answer = ask(client, schema)
            if answer.status_code == 400:
                assert answer.json()["error"]["message"]
                return
            choice = answer.raise_for_status().json()["choices"][0]
            if choice["finish_reason"] != "length":
                found = json.loads(choice["message"]["content"], parse_float=_finite)
                jsonschema_rs.validate(schema, found)
                whole_answers += 1

        run()
    assert whole_answers > 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("end", ["\\xe9", "(\\xe9|\\u0100)"])
def test_an_answer_at_a_dead_end_is_cut_there_and_remembered(stream: bool, end: str) -> None:
    with answering(ascii_only) as client:
        answer = ask(client, {"type": "string", "pattern": f"^(ab){{9}}{end}$"}, stream=stream)
        assert answer.status_code == 200
        assert '"finish_reason":"length"' in answer.text
        assert _said(answer.text) == SAID
        assert '"error"' not in answer.text
        said = [*ASKED["messages"], {"role": "assistant", "content": SAID}]
        again = {"role": "user", "content": "Go on"}
        after = client.post(
            "/v1/chat/completions", json=ASKED | {"messages": [*said, again]}
        ).raise_for_status()
        assert int(after.headers["x-agentcache-cached-tokens"]) > 100


def _said(text: str) -> str:
    """The content of an answer, streamed or not."""
    frames = [one.removeprefix("data: ") for one in text.split("\n\n") if "choices" in one]
    choices = [json.loads(frame)["choices"][0] for frame in frames]
    return "".join(
        (one["delta"] if "delta" in one else one["message"]).get("content") or "" for one in choices
    )
