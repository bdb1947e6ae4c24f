"""/v1/responses with the openai package over the whole service: its accumulator raises on a wrong
order of events.
"""

import json
from typing import Any

import openai
import pytest

from agentcache.service import Service
from tests.integration.test_http_service import sdk
from tests.whole_service import whole_service

pytestmark = pytest.mark.anyio
SAID = "Tell me of the sea. " * 20
LOOK: Any = {
    "type": "function",
    "name": "look",
    "description": "Look at a place.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"at": {"type": "string", "maxLength": 8}},
        "required": ["at"],
        "additionalProperties": False,
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}},
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def asking(**fields: Any) -> dict[str, Any]:
    asked = {"model": "memory", "input": SAID, "max_output_tokens": 60, "temperature": 0}
    return asked | fields


async def streamed(client: Any, **fields: Any) -> tuple[list[str], Any]:
    async with client.responses.stream(**asking(**fields)) as stream:
        events = [event async for event in stream]
        return [event.type for event in events], await stream.get_final_response()


async def test_a_stream_adds_up_to_what_a_whole_response_says() -> None:
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            response = await client.responses.create(**asking())
            kinds, final = await streamed(client)
    assert final.output_text == response.output_text != ""
    assert (final.status, response.status) == ("completed", "completed")
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"


async def test_usage_tells_what_was_read_from_the_cache() -> None:
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            first = await client.responses.create(**asking())
            second = await client.responses.create(
                **asking(input="More.", previous_response_id=first.id)
            )
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens
    assert second.previous_response_id == first.id


async def test_a_response_goes_on_from_any_earlier_one() -> None:
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            first = await client.responses.create(**asking())
            one = asking(input="More.", previous_response_id=first.id)
            second = await client.responses.create(**one)
            again = await client.responses.create(**one)
            third = await client.responses.create(
                **asking(input="More.", previous_response_id=second.id)
            )
    assert second.output_text == again.output_text
    assert third.usage.input_tokens > second.usage.input_tokens


async def test_instructions_are_those_of_the_request_alone() -> None:
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            first = await client.responses.create(**asking(instructions="Be kind. " * 30))
            bare = await client.responses.create(
                **asking(input="More.", previous_response_id=first.id)
            )
    assert bare.usage.input_tokens < first.usage.input_tokens


async def test_a_stored_response_is_looked_up_and_deleted() -> None:
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            made = await client.responses.create(**asking())
            found = await client.responses.retrieve(made.id)
            await client.responses.delete(made.id)
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(made.id)
            with pytest.raises(openai.NotFoundError):
                await client.responses.create(**asking(previous_response_id=made.id))
    assert found.output_text == made.output_text
    assert found.output[0].id == made.output[0].id


async def test_a_response_that_is_not_stored_leaves_nothing() -> None:
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            made = await client.responses.create(**asking(store=False))
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(made.id)
            assert sessions_of(whole.service) == 0
            await client.responses.create(**asking())
            assert sessions_of(whole.service) == 1


async def test_with_a_cache_key_its_rows_are_kept_and_the_response_is_not() -> None:
    asked = asking(store=False, prompt_cache_key="thread")
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            made = await client.responses.create(**asked)
            assert sessions_of(whole.service) == 1
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(made.id)
            with pytest.raises(openai.NotFoundError):
                await client.responses.create(**asking(previous_response_id=made.id))
            with pytest.raises(openai.NotFoundError):
                await client.responses.delete(made.id)
            said = [{"role": "user", "content": SAID}, *_as_items(made)]
            more = [*said, {"role": "user", "content": "More."}]
            after = await client.responses.create(**asked | {"input": more})
            assert sessions_of(whole.service) == 1
    assert after.usage.input_tokens_details.cached_tokens >= made.usage.total_tokens - 1


@pytest.mark.parametrize("key", [{}, {"prompt_cache_key": ""}])
async def test_no_store_leaves_nothing_whatever_the_request_says(key: dict[str, str]) -> None:
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            await client.responses.create(**asking(store=False, **key))
            headers = {"X-Agent-Cache": "no-store"}
            named = {"prompt_cache_key": "thread", "store": True}
            await client.responses.create(**asking(**named), extra_headers=headers)
            assert sessions_of(whole.service) == 0


def _as_items(response: Any) -> list[Any]:
    return [item.model_dump(exclude_none=True) for item in response.output]


def sessions_of(service: Service) -> int:
    return len(service._loop.conductor.keeper.registry)


async def test_ten_turns_with_tools_go_on_from_the_tokens_that_were_sampled() -> None:
    served = known = before = 0
    items: list[Any] = [{"role": "user", "content": SAID}]
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            for number in range(10):
                forced = {"tools": [LOOK], "tool_choice": "required", "temperature": 1}
                _, answer = await streamed(
                    client,
                    input=items,
                    max_output_tokens=400,
                    parallel_tool_calls=False,
                    **forced,
                )
                [call] = answer.output
                assert call.type == "function_call"
                assert isinstance(json.loads(call.arguments), dict)
                served += answer.usage.input_tokens_details.cached_tokens
                known += before
                before = answer.usage.total_tokens
                items += [
                    {
                        "type": "function_call",
                        "call_id": call.call_id,
                        "name": call.name,
                        "arguments": json.dumps(json.loads(call.arguments), indent=1),
                    },
                    {
                        "type": "function_call_output",
                        "call_id": call.call_id,
                        "output": str(number),
                    },
                ]
    assert served >= 0.97 * known


async def test_a_structured_answer_fits_its_schema() -> None:
    form = {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}}
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            answer = await client.responses.create(**asking(text=form))
    assert set(json.loads(answer.output_text)) == {"n"}


@pytest.mark.parametrize(
    ("fields", "stored"),
    [
        ({}, True),
        ({"store": False}, False),
        ({"store": False, "prompt_cache_key": "k"}, False),
        ({"extra_headers": {"X-Agent-Cache": "no-store"}}, False),
    ],
)
async def test_it_tells_whether_it_can_be_looked_up(fields: dict[str, Any], stored: bool) -> None:
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            made = await client.responses.create(**asking(max_output_tokens=3, **fields))
            try:
                found = bool(await client.responses.retrieve(made.id))
            except openai.NotFoundError:
                found = False
    assert made.store is found is stored


async def test_a_response_that_was_cut_is_incomplete() -> None:
    with whole_service(end_rate=0.0) as whole:
        async with sdk(whole.service) as client:
            answer = await client.responses.create(**asking(max_output_tokens=5))
            kinds = [
                event.type
                async for event in await client.responses.create(
                    **asking(max_output_tokens=5), stream=True
                )
            ]
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert kinds[-1] == "response.incomplete"


async def test_log_probabilities_come_with_the_text() -> None:
    told = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            answer = await client.responses.create(**asking(**told))
    [item] = answer.output
    assert len(item.content[0].logprobs) > 3
    assert len(item.content[0].logprobs[0].top_logprobs) == 1


async def test_tools_that_only_a_server_runs_are_passed_over() -> None:
    tools: Any = [{"type": "web_search"}, {"type": "local_shell"}, {"type": "custom", "name": "x"}]
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            answer = await client.responses.create(**asking(tools=tools))
    assert answer.output_text


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input_image"),
        ({"background": True}, "background"),
        ({"tool_choice": {"type": "function", "name": "run"}}, "run"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "schema"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 9000}, "temperature"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    fields: dict[str, Any], named: str
) -> None:
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            with pytest.raises(openai.BadRequestError, match=named):
                await client.responses.create(**asking(**fields))
