"""The edge over the real service: what the cache did is told, and who goes away frees a place."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from agentcache.adapters.http.app import create_app
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.server import HttpServer, listen
from agentcache.domain.notices import Limits
from agentcache.domain.request import Finish
from agentcache.service import Service
from tests.whole_service import whole_service

pytestmark = pytest.mark.anyio
NEVER = 10_000_000  # tokens of an answer that is not done before its client goes away
ASKED: dict[str, Any] = {"model": "memory", "messages": [{"role": "user", "content": "Hi there"}]}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def sdk(service: Service) -> AsyncIterator[AsyncOpenAI]:
    edge = Edge(service, 1_000_000)
    server = HttpServer(create_app(edge), edge, listen("127.0.0.1", 0), patience=60)
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(server.run(address.set_result))
    url = f"{await address}/v1"
    try:
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            yield client
    finally:
        server.stop()
        await running


async def _say(client: AsyncOpenAI, messages: list[Any], agent: str = "ann") -> Any:
    return await client.chat.completions.with_raw_response.create(
        model="memory",
        messages=messages,
        max_tokens=20,
        temperature=0,
        extra_headers={"X-Agent-ID": agent},
    )


async def test_a_second_turn_computes_only_what_is_new() -> None:
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            messages = [{"role": "user", "content": "Tell me of the sea. " * 20}]
            first = (await _say(client, messages)).parse()
            before = whole.telemetry.tokens_forwarded
            said = {"role": "assistant", "content": first.choices[0].message.content}
            raw = await _say(client, [*messages, said, {"role": "user", "content": "More."}])
            second = raw.parse()
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached >= first.usage.prompt_tokens
    passed = whole.telemetry.tokens_forwarded - before
    new = second.usage.prompt_tokens - cached
    assert new <= passed <= new + second.usage.completion_tokens
    assert raw.headers["x-agentcache-cached-tokens"] == str(cached)
    assert raw.headers["x-agentcache-tier"] in {"hot", "warm"}


async def test_the_same_words_by_another_agent_get_the_same_answer() -> None:
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            one = (await _say(client, ASKED["messages"], "ann")).parse()
            other = (await _say(client, ASKED["messages"], "bob")).parse()
    assert one.choices[0].message.content == other.choices[0].message.content


async def test_a_stream_says_what_a_whole_answer_says() -> None:
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            asked = ASKED | {"max_tokens": 40, "seed": 5}
            whole_answer = await client.chat.completions.create(**asked)
            stream = await client.chat.completions.create(**asked, stream=True)
            pieces = [c.choices[0].delta.content or "" async for c in stream]
    assert "".join(pieces) == whole_answer.choices[0].message.content


async def test_a_prompt_that_never_fits_is_refused_in_the_words_clients_look_for() -> None:
    with whole_service(context=64) as whole:
        async with sdk(whole.service) as client:
            messages = [{"role": "user", "content": "x. " * 100}]
            with pytest.raises(
                openai.BadRequestError, match=r"prompt is too long: \d+ tokens > \d+ max"
            ):
                await _say(client, messages)


@pytest.mark.parametrize("stream", [False, True])
async def test_who_goes_away_while_it_is_answered_frees_its_place(stream: bool) -> None:
    with whole_service(Limits(batch=1), context=NEVER, end_rate=0.0) as whole:
        async with sdk(whole.service) as client:
            asking = asyncio.create_task(_all(client, stream))
            await whole.telemetry.until(lambda: whole.telemetry.levels.get("running") == 1)
            asking.cancel()
            await whole.telemetry.until(lambda: bool(whole.telemetry.ended))
            assert whole.telemetry.ended[0].finish is Finish.CANCELLED
            after = await client.chat.completions.create(**ASKED, max_tokens=3)
    assert after.choices[0].finish_reason == "length"


async def test_who_goes_away_while_it_waits_is_never_answered() -> None:
    with whole_service(Limits(batch=1), context=NEVER, end_rate=0.0) as whole:
        levels = whole.telemetry.levels
        async with sdk(whole.service) as client:
            running = asyncio.create_task(_all(client, stream=True))
            await whole.telemetry.until(lambda: levels.get("running") == 1)
            waiting = asyncio.create_task(_all(client, stream=True))
            await whole.telemetry.until(lambda: levels.get("queued") == 1)
            waiting.cancel()
            await whole.telemetry.until(lambda: levels.get("queued") == 0)
            assert levels["running"] == 1
            running.cancel()
            await whole.telemetry.until(lambda: levels.get("running") == 0)
    assert len(whole.telemetry.started) == 1


async def test_one_too_many_is_refused_at_once_with_a_time_to_come_back() -> None:
    with whole_service(Limits(batch=1, queue=1), context=NEVER, end_rate=0.0) as whole:
        levels = whole.telemetry.levels
        async with sdk(whole.service) as client:
            running = asyncio.create_task(_all(client, stream=True))
            await whole.telemetry.until(lambda: levels.get("running") == 1)
            waiting = asyncio.create_task(_all(client, stream=True))
            await whole.telemetry.until(lambda: levels.get("queued") == 1)
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(**ASKED)
            waiting.cancel()
            running.cancel()
            await whole.telemetry.until(lambda: levels.get("running") == 0)
    assert int(caught.value.response.headers["retry-after"]) >= 1


async def _all(client: AsyncOpenAI, stream: bool) -> None:
    answer = await client.chat.completions.create(**ASKED, stream=stream)
    if stream:
        async for _ in answer:
            pass
