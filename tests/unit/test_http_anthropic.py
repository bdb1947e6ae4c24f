"""/v1/messages in words: what Anthropic's clients send beside a prompt, and what they are told."""

from typing import Any

import pytest

from agentcache.domain.answer import AnswerFormat, Reading
from agentcache.domain.events import Delta, Ended
from agentcache.domain.request import Finish
from agentcache.domain.tool_prompt import parse_calls
from tests.scripted_service import ScriptedService, app_of, client_of

pytestmark = pytest.mark.anyio
THOUGHTFUL = Reading(AnswerFormat(("<think>", "</think>"), None, parse_calls))
SCRIPT = (Delta("<think>hm", 3), Delta("</think>Well.", 3), Ended(Finish.STOP, 7, 5, 6))
ASKED: Any = {
    "model": "tiny",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "Hi"}],
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def told(**fields: Any) -> tuple[ScriptedService, Any]:
    service = ScriptedService(SCRIPT, reading=THOUGHTFUL)
    async with client_of(app_of(service)) as client:
        return service, await client.post("/v1/messages", json=ASKED | fields)


async def test_a_thought_is_a_block_with_a_signature_before_the_text() -> None:
    _, answer = await told(thinking={"type": "enabled", "budget_tokens": 1024})
    thought, text = answer.raise_for_status().json()["content"]
    assert (thought["type"], thought["thinking"]) == ("thinking", "hm")
    assert thought["signature"]
    assert (text["type"], text["text"]) == ("text", "Well.")


async def test_a_streamed_thought_is_signed_and_closed_before_the_text_begins() -> None:
    _, answer = await told(stream=True)
    order = ["thinking_delta", "signature_delta", "content_block_stop", "text_delta"]
    found = [answer.text.index(f'"type":"{kind}"') for kind in order]
    assert found == sorted(found)


@pytest.mark.parametrize(
    "thinking", [{"type": "disabled"}, {"type": "adaptive", "display": "omitted"}]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_thought_that_nobody_wants_to_read_is_not_told(thinking: Any, stream: bool) -> None:
    _, answer = await told(thinking=thinking, stream=stream)
    assert "hm" not in answer.raise_for_status().text
    assert "Well." in answer.text


@pytest.mark.parametrize(
    "more",
    [
        {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
        {"cache_control": {"type": "ephemeral"}},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"mcp_servers": [], "betas": ["x"]},
    ],
)
async def test_what_there_is_nothing_to_do_about_is_accepted_and_changes_nothing(
    more: dict[str, Any],
) -> None:
    plain, _ = await told()
    service, answer = await told(**more)
    assert answer.status_code == 200
    assert service.asks == plain.asks


async def test_a_system_message_stands_where_it_was_said() -> None:
    messages = [*ASKED["messages"], {"role": "system", "content": "Be brief."}]
    service, answer = await told(messages=[*messages, {"role": "user", "content": "Now?"}])
    assert answer.status_code == 200
    roles = [message.role for message in service.asks[0].conversation.messages]
    assert roles == ["user", "system", "user"]
