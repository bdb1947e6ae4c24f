"""Ten turns with a tool call each, in each dialect, over a home that is closed and opened between.

Nobody has a name: the conversations are recognised by what was said.
"""

import json
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from starlette.testclient import TestClient

from tests.integration.test_mounted import mounted
from tests.tool_dialects import DIALECTS, Clients, Dialect, chat, messages, spread

TURNS = 10


def clients_of(http: TestClient) -> Clients:
    base = f"{http.base_url}/llm"
    return Clients(
        openai.OpenAI(base_url=f"{base}/v1", api_key="none", http_client=http),
        anthropic.Anthropic(base_url=base, api_key="none", http_client=http),
        "memory",
    )


@pytest.mark.parametrize("dialect", DIALECTS)
def test_ten_turns_go_on_from_what_was_sampled_whenever_the_home_is_opened_anew(
    tmp_path: Path, dialect: Dialect
) -> None:
    sent: list[Any] = [{"role": "user", "content": "Look here."}]
    known = served = before = 0
    for lives in (range(5), range(5, 6), range(6, TURNS)):
        with mounted(tmp_path) as client:
            for _ in lives:
                turn = dialect(clients_of(client), sent)
                known, served = known + before, served + min(before, turn.cached)
                sent, before = turn.sent, turn.prompt + turn.said
    assert served >= 0.97 * known > 0


def test_a_call_is_found_by_its_id_in_another_dialect_after_a_restart(tmp_path: Path) -> None:
    asked: list[Any] = [{"role": "user", "content": "Look here."}]
    with mounted(tmp_path) as client:
        turn = messages(clients_of(client), asked)
    _, echo, result = turn.sent
    [use], [seen] = echo["content"], result["content"]
    assert use["id"].startswith("toolu_")
    function = {"name": use["name"], "arguments": spread(json.dumps(use["input"]))}
    called = [{"id": use["id"], "type": "function", "function": function}]
    answered = {"role": "tool", "tool_call_id": use["id"], "content": seen["content"]}
    with mounted(tmp_path) as client:
        again = chat(
            clients_of(client), [*asked, {"role": "assistant", "tool_calls": called}, answered]
        )
    assert again.cached >= turn.prompt + turn.said - 1
