"""Chat completions at the edge: what is asked of the service, and what clients are told."""

import asyncio

import pytest

from agentcache.adapters.http.app import create_app
from agentcache.adapters.http.edge import Edge
from agentcache.domain.conversation import Message, ToolCall
from agentcache.domain.errors import TurnCancelled
from agentcache.domain.events import Admitted, Delta, Ended
from agentcache.domain.request import Finish, Identity, Miss, Sampling, Tier
from tests.scripted_service import Call, ScriptedService, app_of, ask, client_of, frames

pytestmark = pytest.mark.anyio
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"z": 1, "a": 2}}}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_an_answer_has_the_text_as_it_was_said_and_says_what_it_cost() -> None:
    answer = (await ask(ScriptedService())).json()
    choice = answer["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "Hello", "refusal": None}
    assert (answer["object"], choice["finish_reason"]) == ("chat.completion", "stop")
    assert answer["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 4,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 5},
    }


async def test_an_answer_that_was_cut_says_so() -> None:
    service = ScriptedService(script=(Delta("Hel", 1), Ended(Finish.LENGTH, 7, 0, 1)))
    answer = (await ask(service)).json()
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
async def test_every_answer_says_what_the_cache_did(stream: bool) -> None:
    service = ScriptedService(admitted=Admitted(7, 5, Tier.COLD, Miss.SYSTEM_CHANGED))
    headers = (await ask(service, stream=stream)).headers
    assert headers["x-agentcache-cached-tokens"] == "5"
    assert headers["x-agentcache-tier"] == "cold"
    assert headers["x-agentcache-miss"] == "system_changed"


async def test_a_match_without_a_miss_has_no_miss_header() -> None:
    assert "x-agentcache-miss" not in (await ask(ScriptedService())).headers


async def test_a_stream_is_a_role_then_content_then_a_reason_then_done() -> None:
    response = await ask(ScriptedService(), stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = frames(response.text)
    assert done == "[DONE]"
    assert [(c["choices"][0]["delta"], c["choices"][0]["finish_reason"]) for c in chunks] == [
        ({"role": "assistant", "content": ""}, None),
        ({"content": "Hel"}, None),
        ({"content": "lo"}, None),
        ({}, "stop"),
    ]
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert len({c["id"] for c in chunks}) == 1
    assert all("usage" not in c for c in chunks)


async def test_a_stream_ends_with_its_usage_when_that_is_asked_for() -> None:
    response = await ask(ScriptedService(), stream=True, stream_options={"include_usage": True})
    *chunks, last, _done = frames(response.text)
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 5}
    assert all(c["usage"] is None for c in chunks)


async def test_an_engine_that_fails_in_mid_stream_is_a_frame_and_nothing_follows_it() -> None:
    failed = Ended(Finish.FAILED, 7, 5, 1, problem="not a number")
    response = await ask(ScriptedService(script=(Delta("He", 1), failed)), stream=True)
    assert frames(response.text)[-1]["error"]["message"] == "the turn failed: not a number"


async def test_our_own_error_in_mid_stream_is_a_frame_that_tells_nothing_of_it() -> None:
    service = ScriptedService(script=(Delta("He", 1), ZeroDivisionError("secret")))
    text = (await ask(service, stream=True)).text
    assert frames(text)[-1]["error"]["type"] == "server_error"
    assert "secret" not in text


async def test_an_engine_that_fails_before_a_whole_answer_is_an_error_status() -> None:
    failed = Ended(Finish.FAILED, 7, 5, 1, problem="not a number")
    response = await ask(ScriptedService(script=(Delta("He", 1), failed)))
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "turn_failed"


async def test_a_pause_is_filled_with_comments_that_keep_the_connection() -> None:
    service = ScriptedService(script=())
    app = create_app(Edge(service, max_body=1000, keep_alive=0.001))
    call = Call(app, {"stream": True})
    running = asyncio.create_task(call.run())
    turn = await service.turns.get()
    sent = b""
    while sent.count(b": keep-alive\n\n") < 3:
        sent += (await call.sent.get()).get("body", b"")
    turn.tell(Delta("late", 1), Ended(Finish.STOP, 7, 5, 1))
    await running
    rest = b"".join(call.sent.get_nowait().get("body", b"") for _ in range(call.sent.qsize()))
    assert b'"late"' in rest
    assert rest.endswith(b"data: [DONE]\n\n")


async def test_messages_reach_the_service_with_developers_as_system() -> None:
    service = ScriptedService()
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
    parts = [{"type": "text", "text": " two"}, {"type": "text", "text": " parts\x00"}]
    await ask(
        service,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": parts, "name": "ann"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "42", "tool_call_id": "c1"},
            {"role": "assistant", "refusal": "No."},
        ],
    )
    assert service.asks[0].conversation.messages == (
        Message("system", "Be brief."),
        Message("user", " two parts\x00", name="ann"),
        Message("assistant", "", tool_calls=(ToolCall("c1", "look", '{"a": 1}'),)),
        Message("tool", "42", tool_call_id="c1"),
        Message("assistant", "No."),
    )


async def test_tools_are_shown_to_the_model_in_the_order_given_when_none_may_be_called() -> None:
    service = ScriptedService()
    other = {"type": "function", "function": {"name": "act"}, "extra": True}
    await ask(service, tools=[TOOL, other], tool_choice="none")
    assert service.asks[0].conversation.tools == (TOOL, other)


async def test_sampling_defaults_are_those_of_openai() -> None:
    service = ScriptedService()
    await ask(service)
    assert service.asks[0].sampling == Sampling(temperature=1.0, top_p=1.0, top_k=0, seed=None)
    assert (service.asks[0].max_tokens, service.asks[0].stop) == (None, ())
    assert service.asks[0].store


async def test_sampling_is_passed_on() -> None:
    service = ScriptedService()
    await ask(service, temperature=0, top_p=0.9, top_k=40, min_p=0.1, seed=7, max_tokens=3)
    assert service.asks[0].sampling == Sampling(0.0, 0.9, 40, 0.1, 7)
    assert service.asks[0].max_tokens == 3


@pytest.mark.parametrize(("seed", "folded"), [(-1, 2**64 - 1), (2**200 + 5, 5), (0, 0)])
async def test_a_seed_of_any_size_is_folded(seed: int, folded: int) -> None:
    service = ScriptedService()
    await ask(service, seed=seed)
    assert service.asks[0].sampling.seed == folded


@pytest.mark.parametrize(
    ("stop", "stops"), [("END", ("END",)), (["a", "b"], ("a", "b")), ([], ()), (None, ())]
)
async def test_stop_is_a_string_or_several(stop: object, stops: tuple[str, ...]) -> None:
    service = ScriptedService()
    await ask(service, stop=stop)
    assert service.asks[0].stop == stops


async def test_store_false_is_passed_on() -> None:
    service = ScriptedService()
    await ask(service, store=False)
    assert not service.asks[0].store


async def test_a_prompt_cache_key_hints_at_the_conversation() -> None:
    service = ScriptedService()
    await ask(service, prompt_cache_key="thread-1")
    assert service.asks[0].identity == Identity("thread-1", exclusive=False)


NEUTRAL = {
    "n": 1,
    "logprobs": False,
    "top_logprobs": 0,
    "logit_bias": {},
    "presence_penalty": 0,
    "frequency_penalty": 0.0,
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "functions": [],
    "function_call": "none",
    "reasoning_effort": "none",
    "verbosity": "medium",
    "service_tier": "auto",
    "prompt_cache_options": {"mode": "implicit"},
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "metadata": {"run": "1"},
    "user": "ann",
    "safety_identifier": "x",
    "temperature": None,
    "a_field_of_next_year": {"deep": [1]},
}


@pytest.mark.parametrize("name", NEUTRAL)
async def test_what_asks_for_nothing_unusual_is_accepted(name: str) -> None:
    assert (await ask(ScriptedService(), **{name: NEUTRAL[name]})).status_code == 200


REFUSED = {
    "n": 2,
    "top_logprobs": 3,
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "mp3"},
    "moderation": {"model": "x"},
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "verbosity": "low",
    "web_search_options": {},
    "logprobs": 1,
    "logit_bias": {"no token": 1},
    "presence_penalty": 2.5,
    "frequency_penalty": -2.5,
    "response_format": {"type": "json_schema"},
    "reasoning_effort": "a lot",
    "tools": [{"type": "web_search"}],
    "tool_choice": {"type": "function"},
    "parallel_tool_calls": "yes",
    "temperature": -1,
    "top_p": 1.5,
    "top_k": -1,
    "min_p": 2,
    "max_tokens": 0,
    "max_completion_tokens": -5,
    "stop": ["a", ""],
    "stream_options": {"include_usage": True},
    "messages": [],
    "model": 5,
    "seed": 1.5,
    "stream": "yes",
    "store": 1,
    "metadata": {"a": 1},
    "prompt_cache_key": "x" * 257,
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_cannot_be_honoured_is_refused_by_name(name: str) -> None:
    service = ScriptedService()
    response = await ask(service, **{name: REFUSED[name]})
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"].split(".")[0].split("[")[0] == name
    assert not service.asks


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "function", "content": "x", "name": "f"}, "messages[0].role"),
        ({"role": "tool", "content": "x"}, "messages[0].tool_call_id"),
        ({"role": "assistant", "audio": {"id": "a"}}, "messages[0].audio"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "messages[0].function_call"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "messages[0].tool_calls[0]"),
        (
            {"role": "user", "content": "x", "tool_calls": [TOOL | {"id": "1"}]},
            "messages[0].tool_calls[0].function",
        ),
        ("Hi", "messages[0]"),
    ],
)
async def test_a_message_that_cannot_be_read_is_refused_where_it_is_wrong(
    message: object, param: str
) -> None:
    response = await ask(ScriptedService(), messages=[message])
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_two_limits_that_differ_are_refused_and_two_that_agree_are_one() -> None:
    service = ScriptedService()
    assert (await ask(service, max_tokens=3, max_completion_tokens=4)).status_code == 400
    assert (await ask(service, max_tokens=3, max_completion_tokens=3)).status_code == 200
    assert service.asks[0].max_tokens == 3


async def test_too_many_stop_sequences_are_refused() -> None:
    response = await ask(ScriptedService(), stop=["x"] * 17)
    assert response.json()["error"]["param"] == "stop"


@pytest.mark.parametrize("field", ["model", "messages"])
async def test_a_missing_field_is_named(field: str) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
    del body[field]
    async with client_of(app_of(ScriptedService())) as client:
        response = await client.post("/v1/chat/completions", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, field)


async def test_a_model_that_is_not_served_is_not_found_and_those_served_are_told() -> None:
    response = await ask(ScriptedService(), model="gpt-9")
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (404, "model_not_found")
    assert "vendor/tiny" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_turn_that_is_cancelled_on_the_way_is_never_told_as_a_whole_answer(
    stream: bool,
) -> None:
    service = ScriptedService(script=(Delta("x", 1), TurnCancelled("stopped")))
    response = await ask(service, stream=stream)
    error = frames(response.text)[-1]["error"]
    assert (error["code"], error["message"]) == ("turn_cancelled", "the turn was stopped")
