"""The anthropic package against the whole service: its own accumulators raise on a wrong order."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic

from agentcache.adapters.http.app import Door, create_app
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.server import HttpServer, listen
from agentcache.adapters.memory.keyring import MemoryKeyring
from agentcache.domain.access import Access
from agentcache.service import Service
from tests.whole_service import whole_service

pytestmark = pytest.mark.anyio
SAID: list[Any] = [{"role": "user", "content": "Tell me of the sea. " * 20}]
LOOK: Any = {
    "name": "look",
    "description": "Look at a place.",
    "input_schema": {
        "type": "object",
        "properties": {"at": {"type": "string", "maxLength": 8}},
        "required": ["at"],
        "additionalProperties": False,
    },
}
FORCED: Any = {"type": "tool", "name": "look", "disable_parallel_tool_use": True}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def sdk(
    service: Service, door: Door | None = None, key: str = "none"
) -> AsyncIterator[AsyncAnthropic]:
    edge = Edge(service, 1_000_000)
    server = HttpServer(create_app(edge, door=door), edge, listen("127.0.0.1", 0), patience=60)
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(server.run(address.set_result))
    try:
        async with AsyncAnthropic(base_url=await address, api_key=key, max_retries=0) as client:
            yield client
    finally:
        server.stop()
        await running


def asking(temperature: float = 0.0, **fields: Any) -> dict[str, Any]:
    """The package knows no temperature any more; older ones do, and the server does."""
    sampling = {"extra_body": {"temperature": temperature}}
    return {"model": "memory", "max_tokens": 60, "messages": SAID} | sampling | fields


async def test_a_stream_adds_up_to_what_a_whole_answer_says() -> None:
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            message = await client.messages.create(**asking())
            async with client.messages.stream(**asking()) as stream:
                kinds = [event.type async for event in stream]
                streamed = await stream.get_final_message()
    assert [block.to_dict()["text"] for block in streamed.content] == [
        block.to_dict()["text"] for block in message.content
    ]
    assert streamed.stop_reason == message.stop_reason
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"


async def test_the_parts_of_a_prompt_add_up_and_a_second_turn_is_read_from_the_cache() -> None:
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            count = await client.messages.count_tokens(model="memory", messages=SAID)
            first = await client.messages.create(**asking())
            said = [*SAID, {"role": "assistant", "content": first.content}]
            more = [*said, {"role": "user", "content": "More."}]
            second = await client.messages.create(**asking(messages=more))
    assert _prompt(first.usage) == count.input_tokens
    assert second.usage.cache_read_input_tokens >= count.input_tokens
    assert _prompt(second.usage) > _prompt(first.usage)


async def test_true_usage_is_told_when_a_stream_begins() -> None:
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            await client.messages.create(**asking())
            async with client.messages.stream(**asking()) as stream:
                started = await anext(aiter(stream))
                assert started.type == "message_start"
                ended = (await stream.get_final_message()).usage
    assert started.message.usage.cache_read_input_tokens == ended.cache_read_input_tokens > 0
    assert started.message.usage.input_tokens == ended.input_tokens


async def test_ten_turns_with_tools_go_on_from_the_tokens_that_were_sampled() -> None:
    served = known = before = 0
    messages = list(SAID)
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            for number in range(10):
                asked = asking(1.0, messages=messages, tools=[LOOK], tool_choice=FORCED)
                asked["max_tokens"] = 400
                async with client.messages.stream(**asked) as stream:
                    answer = await stream.get_final_message()
                assert answer.stop_reason == "tool_use"
                [call] = answer.content
                assert call.type == "tool_use"
                assert isinstance(call.input, dict)
                served += answer.usage.cache_read_input_tokens or 0
                known += before
                before = _prompt(answer.usage) + answer.usage.output_tokens
                result = {"type": "tool_result", "tool_use_id": call.id, "content": str(number)}
                messages += [
                    {"role": "assistant", "content": answer.content},
                    {"role": "user", "content": [result]},
                ]
    assert served >= 0.97 * known


async def test_a_structured_answer_fits_its_schema() -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}},
        "required": ["n"],
        "additionalProperties": False,
    }
    config: Any = {"format": {"type": "json_schema", "schema": schema}}
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            answer = await client.messages.create(**asking(output_config=config))
    [block] = answer.content
    assert block.type == "text"
    assert set(json.loads(block.text)) == {"n"}


async def test_a_stop_sequence_is_told_and_not_said() -> None:
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            plain = (await client.messages.create(**asking())).content[0]
            assert plain.type == "text"
            stop = plain.text[5:8]
            cut = await client.messages.create(**asking(stop_sequences=[stop]))
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)
    assert stop not in "".join(block.text for block in cut.content if block.type == "text")


async def test_no_tokens_compute_the_prompt_and_keep_it() -> None:
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            warmed = await client.messages.create(**asking(max_tokens=0))
            answer = await client.messages.create(**asking())
    assert (warmed.usage.output_tokens, warmed.content) == (0, [])
    assert (answer.usage.cache_read_input_tokens or 0) > 0.9 * _prompt(answer.usage)


async def test_who_asks_why_less_was_reused_is_told() -> None:
    told: Any = {"previous_message_id": "msg_1"}
    header = {"X-Agent-ID": "ann"}
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            first = await client.messages.create(
                **asking(system="Be kind.", diagnostics=told), extra_headers=header
            )
            said = [*SAID, {"role": "assistant", "content": first.content}, *SAID]
            other = asking(system="Be brief.", messages=said, diagnostics=told)
            second = await client.messages.create(**other, extra_headers=header)
    assert first.diagnostics is None
    assert second.diagnostics is not None
    assert second.diagnostics.cache_miss_reason is not None
    assert second.diagnostics.cache_miss_reason.type == "system_changed"


@pytest.mark.parametrize(
    ("fields", "error", "named"),
    [
        ({"model": "other"}, anthropic.NotFoundError, "other"),
        ({"messages": []}, anthropic.BadRequestError, "messages"),
        ({"temperature": 9000.0}, anthropic.BadRequestError, "temperature"),
        ({"tools": [{"name": "x"}]}, anthropic.BadRequestError, "input_schema"),
        ({"tool_choice": FORCED}, anthropic.BadRequestError, "look"),
        (
            {"messages": [*SAID, {"role": "assistant", "content": "I"}]},
            anthropic.BadRequestError,
            "answer",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            anthropic.BadRequestError,
            "image",
        ),
        (
            {"messages": [{"role": "user", "content": "many " * 9000}]},
            anthropic.BadRequestError,
            "prompt is too long: ",
        ),
    ],
)
async def test_what_is_wrong_is_raised_as_the_packages_own_errors(
    fields: dict[str, Any], error: type[anthropic.APIStatusError], named: str
) -> None:
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            with pytest.raises(error, match=named) as raised:
                await client.messages.create(**asking(**fields))
    body: Any = raised.value.body
    assert body["type"] == "error"
    assert set(body["error"]) == {"type", "message"}


async def test_a_key_that_is_not_in_force_is_an_authentication_error() -> None:
    door = Door(MemoryKeyring({"right": Access("acme")}))
    with whole_service() as whole:
        async with sdk(whole.service, door, "wrong") as client:
            with pytest.raises(anthropic.AuthenticationError):
                await client.messages.create(**asking())
        async with sdk(whole.service, door, "right") as client:
            assert (await client.messages.create(**asking())).content


async def test_the_models_are_listed() -> None:
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            models = [model async for model in client.models.list()]
    assert [(model.id, model.type, model.lifecycle) for model in models] == [
        ("memory", "model", "active")
    ]


def _prompt(usage: Any) -> int:
    read = usage.cache_read_input_tokens or 0
    made = usage.cache_creation_input_tokens or 0
    return int(usage.input_tokens + read + made)
