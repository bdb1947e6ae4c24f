"""The packages that agent programs are written with, against a server process.

They retry, stream, parse and raise as they do anywhere; nothing of them is replaced.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI

from tests.servers import Server, served
from tests.tool_dialects import DIALECTS, LOOK, SCHEMA, Clients, Dialect

TOOL: Any = {"type": "function", "function": LOOK}
LOOKED = frozenset({"at"})
HELLO: list[Any] = [{"role": "user", "content": "Tell me of the sea."}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("clients") / "home", model) as server:
        yield server


def openai_for(server: Server, retries: int = 0, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=retries, timeout=180, **options
    )


def anthropic_for(server: Server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=180)


def langchain_for(server: Server, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model="tiny",
        base_url=f"{server.url}/v1",
        api_key="none",
        max_retries=0,
        timeout=180,
        max_tokens=100,
        **options,
    )


def test_openai_streams_and_counts(server: Server) -> None:
    with openai_for(server) as client:
        asked: Any = {"model": "tiny", "messages": HELLO, "max_tokens": 20, "temperature": 0}
        whole = client.chat.completions.create(**asked)
        options = {"include_usage": True}
        chunks = list(client.chat.completions.create(**asked, stream=True, stream_options=options))
        text = client.completions.create(model="tiny", prompt="The sea is", max_tokens=5)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == (
        whole.choices[0].message.content
    )
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert text.usage is not None
    assert text.usage.completion_tokens <= 5


def test_openai_parses_structured_answers_and_responses(server: Server) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    with openai_for(server) as client:
        answer = client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=100, response_format=form
        )
        asked: Any = {"model": "tiny", "input": "Hi", "max_output_tokens": 100}
        text: Any = {"format": {"type": "json_schema", "name": "place", "schema": SCHEMA}}
        with client.responses.stream(**asked, text=text) as stream:
            kinds = [event.type for event in stream]
            response = stream.get_final_response()
        more = client.responses.create(
            model="tiny", input="More.", previous_response_id=response.id, max_output_tokens=5
        )
    assert set(json.loads(answer.choices[0].message.content or "")) == {"at"}
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert set(json.loads(response.output_text)) == {"at"}
    assert more.usage is not None
    assert more.usage.input_tokens_details.cached_tokens > 0


def test_anthropic_streams_counts_and_uses_tools(server: Server) -> None:
    tool: Any = {"name": "look", "description": "Look.", "input_schema": SCHEMA}
    with anthropic_for(server) as client:
        counted = client.messages.count_tokens(model="tiny", messages=HELLO)
        with client.messages.stream(model="tiny", max_tokens=20, messages=HELLO) as stream:
            text = "".join(stream.text_stream)
            message = stream.get_final_message()
        choice: Any = {"type": "tool", "name": "look", "disable_parallel_tool_use": True}
        called = client.messages.create(
            model="tiny", max_tokens=200, messages=HELLO, tools=[tool], tool_choice=choice
        )
    usage = message.usage
    assert (usage.cache_read_input_tokens or 0) + usage.input_tokens == counted.input_tokens
    assert [block.text for block in message.content if block.type == "text"] in ([text], [])
    assert called.stop_reason == "tool_use"
    assert {frozenset(one.input) for one in called.content if one.type == "tool_use"} == {LOOKED}


def test_langchain_talks_streams_and_uses_tools(server: Server) -> None:
    chat = langchain_for(server, stream_usage=True)
    said = chat.invoke("Tell me of the sea.")
    assert said.usage_metadata is not None
    assert said.usage_metadata["output_tokens"] > 0
    gathered: Any = None
    for chunk in chat.stream("Tell me of the sea."):
        gathered = chunk if gathered is None else gathered + chunk
    assert gathered.usage_metadata["input_token_details"]["cache_read"] > 0
    caller = chat.bind_tools([TOOL], tool_choice="required", parallel_tool_calls=False)
    asked: list[Any] = [HumanMessage("Look here.")]
    called: Any = caller.invoke(asked)
    assert [(one["name"], set(one["args"])) for one in called.tool_calls] == [("look", {"at"})]
    result = ToolMessage("a ship", tool_call_id=called.tool_calls[0]["id"])
    after: Any = caller.invoke([*asked, called, result])
    old = called.usage_metadata["total_tokens"]
    assert after.usage_metadata["input_token_details"]["cache_read"] >= 0.97 * old
    structured: Any = chat.with_structured_output(
        {"title": "place", **SCHEMA}, method="json_schema"
    )
    assert set(structured.invoke("Where?")) == {"at"}


def test_errors_are_raised_as_the_packages_own(server: Server) -> None:
    with openai_for(server) as one, anthropic_for(server) as other:
        with pytest.raises(openai.NotFoundError, match="not served"):
            one.chat.completions.create(model="gpt-none", messages=HELLO)
        with pytest.raises(openai.BadRequestError) as refused:
            one.chat.completions.create(model="tiny", messages=HELLO, n=2)
        assert refused.value.param == "n"
        with pytest.raises(openai.BadRequestError) as long:
            one.completions.create(model="tiny", prompt="x" * 9000)
        assert long.value.code == "context_length_exceeded"
        with pytest.raises(anthropic.NotFoundError):
            other.messages.create(model="claude-none", max_tokens=9, messages=HELLO)
        huge: Any = [{"role": "user", "content": "x" * 9000}]
        with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: .* tokens > "):
            other.messages.create(model="tiny", max_tokens=9, messages=huge)


def test_a_refusal_is_tried_again_when_the_server_said_so(tmp_path: Path, model: Path) -> None:
    seen: list[int] = []
    http = httpx.Client(
        trust_env=False, event_hooks={"response": [lambda r: seen.append(r.status_code)]}
    )
    with served(tmp_path / "home", model, "--rate-limit", "1/3second") as server:
        asked: Any = {"model": "tiny", "messages": HELLO, "max_tokens": 1}
        with openai_for(server, retries=2, http_client=http) as client:
            refused, tries = 0, 0
            while not refused and tries < 9:  # on a busy machine three seconds pass quickly
                tries += 1
                seen.clear()
                client.chat.completions.create(**asked)
                refused = seen.count(429)
    # Its own patience is half a second, twice: it has waited for as long as it was told.
    assert seen == [429, 200]


def test_conversations_with_tools_go_on_after_kill_9_in_every_dialect(
    tmp_path: Path, model: Path
) -> None:
    sent: dict[Dialect, list[Any]] = {
        dialect: [{"role": "user", "content": "Look here."}] for dialect in DIALECTS
    }
    before, known, again = (dict.fromkeys(DIALECTS, 0) for _ in range(3))
    for turns in (3, 2):
        with (
            served(tmp_path / "home", model) as server,
            openai_for(server) as one,
            anthropic_for(server) as other,
        ):
            clients = Clients(one, other, "tiny", named=True)
            for dialect in DIALECTS * turns:
                turn = dialect(clients, sent[dialect])
                known[dialect] += before[dialect]
                again[dialect] += min(turn.cached, before[dialect])
                sent[dialect], before[dialect] = turn.sent, turn.prompt + turn.said
            server.kill()
    assert all(again[one] >= 0.97 * known[one] > 0 for one in DIALECTS), (again, known)
