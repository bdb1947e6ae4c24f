"""Ten turns with a tool call each, in each dialect, over a home that is closed and opened between.

Nobody has a name: the conversations are recognised by what was said.
"""

from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from starlette.testclient import TestClient

from tests.integration.test_mounted import mounted
from tests.tool_dialects import DIALECTS, Clients, Dialect

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
