"""A response that is looked up says what it said when it was made, with the openai package."""

from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import pytest
from attrs import evolve
from starlette.testclient import TestClient

from agentcache.adapters.disk.catalogue import SqliteSessionStore
from agentcache.domain.session import Session
from agentcache.ports.session_store import Commit
from tests.integration.test_http_service import sdk
from tests.integration.test_mounted import mounted
from tests.integration.test_openai_responses import LOOK, SCHEMA, asking
from tests.whole_service import whole_service

SHORT, LONG = 3, 400
LISTED = {"type": "function", "name": "look"}
FULL: dict[str, Any] = {  # whatever a request may say of itself
    "instructions": "Be kind.",
    "tools": [LOOK, {"type": "function", "name": "bare", "parameters": {}, "strict": False}],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [LISTED]},
    "parallel_tool_calls": False,
    "temperature": 0.5,
    "top_p": 0.25,
    "top_logprobs": 2,
    "max_output_tokens": SHORT,
    "text": {
        "format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True},
        "verbosity": "low",
    },
    "reasoning": {"effort": "low", "summary": "auto"},
    "truncation": "disabled",
    "metadata": {"thread": "7"},
    "prompt_cache_key": "thread 7",
    "safety_identifier": "somebody",
    "user": "ann",
}
USUAL = {  # what is told of a request that says none of it
    "instructions": None,
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_logprobs": 0,
    "max_output_tokens": SHORT,
    "text": {"format": {"type": "text"}},
    "truncation": "disabled",
    "metadata": {},
    "previous_response_id": None,
    "user": None,
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def known(response: Any) -> dict[str, Any]:
    """All that a response says, but for what is not stored, and the very second of its end."""
    told: dict[str, Any] = response.model_dump()
    for item in told["output"]:
        for part in item.get("content") or ():
            part.pop("logprobs", None)
    assert told.pop("completed_at") - told["created_at"] < 3600
    return told


def said(response: Any) -> dict[str, Any]:
    """What a response says, as far as there is anything."""
    told: dict[str, Any] = response.model_dump(exclude_none=True, by_alias=True)
    return told


def openai_of(http: TestClient) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{http.base_url}/llm/v1", api_key="none", http_client=http)


@pytest.mark.anyio
@pytest.mark.parametrize(("most", "status"), [(SHORT, "incomplete"), (LONG, "completed")])
async def test_a_response_that_is_looked_up_says_what_it_said(most: int, status: str) -> None:
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            made = await client.responses.create(**asking(max_output_tokens=most))
            found = await client.responses.retrieve(made.id)
    assert made.status == status
    assert known(found) == known(made)
    assert found.completed_at - found.created_at < 3600


@pytest.mark.anyio
@pytest.mark.parametrize(("most", "status"), [(SHORT, "incomplete"), (LONG, "completed")])
async def test_a_streamed_response_is_looked_up_as_its_last_event_told_it(
    most: int, status: str
) -> None:
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            events = await client.responses.create(**asking(max_output_tokens=most, stream=True))
            *_, last = [event async for event in events]
            found = await client.responses.retrieve(last.response.id)
    assert (last.type, found.status) == (f"response.{status}", status)
    assert known(found) == known(last.response)


@pytest.mark.anyio
async def test_each_response_of_a_conversation_keeps_its_own_usage() -> None:
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            first = await client.responses.create(**asking(max_output_tokens=SHORT))
            more = asking(input="More.", previous_response_id=first.id)
            second = await client.responses.create(**more)
            found = [await client.responses.retrieve(one.id) for one in (first, second)]
    assert [known(one) for one in found] == [known(first), known(second)]
    assert [one.usage.input_tokens_details.cached_tokens > 0 for one in found] == [False, True]


@pytest.mark.parametrize("stream", [False, True])
def test_it_tells_all_that_was_asked_for_also_after_a_restart(tmp_path: Path, stream: bool) -> None:
    with mounted(tmp_path) as http:
        client = openai_of(http)
        first = client.responses.create(model="memory", input="Hi", max_output_tokens=SHORT)
        made: Any = client.responses.create(
            model="memory", input="Hi", previous_response_id=first.id, stream=stream, **FULL
        )
        if stream:
            made = list(made)[-1].response
    with mounted(tmp_path) as http:
        found = openai_of(http).responses.retrieve(made.id)
        bare = openai_of(http).responses.retrieve(first.id)
    for told in (said(made), said(found)):
        assert {name: told[name] for name in FULL} == FULL
        assert told["previous_response_id"] == first.id
    assert known(found) == known(made)
    assert {name: said(bare).get(name) for name in USUAL} == USUAL
    assert {name: said(first).get(name) for name in USUAL} == USUAL


def test_what_is_too_long_to_be_kept_is_told_once_and_then_is_null(tmp_path: Path) -> None:
    with mounted(tmp_path) as http:
        client = openai_of(http)
        long = "Be very kind. " * 5000
        asked = asking(**FULL) | {"instructions": long, "input": "Hi", "max_output_tokens": 1}
        with pytest.raises(openai.BadRequestError):  # it does not fit the context of this model
            client.responses.create(**asked)
        asked = asking(**FULL) | {"user": long, "input": "Hi"}
        made = client.responses.create(**asked)
        found = client.responses.retrieve(made.id)
    assert (made.user, found.user) == (long, None)
    assert known(found) == known(made) | {"user": None}


def test_what_was_asked_for_is_forgotten_with_the_response(tmp_path: Path) -> None:
    with mounted(tmp_path) as http:
        named = openai_of(http).with_options(default_headers={"X-Agent-ID": "ann"})
        made = named.responses.create(**asking(metadata={"secret": "cheese"}))
        http.post("/llm/v1/agents/ann/fork", json={"name": "bob"}).raise_for_status()
    assert ["cheese" in one for one in notes(tmp_path)] == [True, True]
    with mounted(tmp_path) as http:
        named = openai_of(http).with_options(default_headers={"X-Agent-ID": "ann"})
        named.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            named.responses.retrieve(made.id)
    assert notes(tmp_path) == []


def test_a_response_that_is_not_stored_leaves_no_note(tmp_path: Path) -> None:
    with mounted(tmp_path) as http:
        openai_of(http).responses.create(**asking(store=False, prompt_cache_key="k"))
    assert notes(tmp_path) == []


async def _branched(client: Any) -> list[Any]:
    first = await client.responses.create(**asking(max_output_tokens=SHORT))
    more = [asking(input=text, previous_response_id=first.id) for text in ("One.", "Two.")]
    return [first, *[await client.responses.create(**one) for one in more]]


@pytest.mark.anyio
async def test_a_response_that_is_deleted_is_gone_from_every_branch_of_its_conversation() -> None:
    with whole_service() as whole:
        async with sdk(whole.service) as client:
            first, *others = await _branched(client)
            await client.responses.delete(first.id)
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(first.id)
            found = [await client.responses.retrieve(one.id) for one in others]
    assert [known(one) for one in found] == [known(one) for one in others]


@pytest.mark.parametrize(
    "metadata",
    [{str(n): "" for n in range(17)}, {"x" * 65: ""}, {"x": "y" * 513}, {"x": 1}, ["x"]],
)
def test_metadata_is_as_much_as_the_api_takes(tmp_path: Path, metadata: Any) -> None:
    with mounted(tmp_path) as http:
        body = asking(metadata=metadata)
        answer = http.post("/llm/v1/responses", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) in [
        (400, param) for param in ("metadata", "metadata[...]", None)
    ]


def test_it_says_the_same_after_a_restart(tmp_path: Path) -> None:
    with mounted(tmp_path) as http:
        client = openai_of(http)
        cut = client.responses.create(**asking(max_output_tokens=SHORT))
        form = {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}}
        whole = client.responses.create(
            **asking(input="More.", previous_response_id=cut.id, text=form)
        )
    with mounted(tmp_path) as http:
        client = openai_of(http)
        found = [client.responses.retrieve(one.id) for one in (cut, whole)]
        again = client.responses.create(**asking(input="More.", previous_response_id=whole.id))
        last = [client.responses.retrieve(one.id) for one in (cut, whole, again)]
    assert [one.status for one in found] == ["incomplete", "completed"]
    assert [known(one) for one in found] == [known(cut), known(whole)]
    assert [known(one) for one in last] == [known(cut), known(whole), known(again)]


def test_a_fork_of_its_agent_knows_it_when_the_agent_is_gone(tmp_path: Path) -> None:
    with mounted(tmp_path) as http:
        named = openai_of(http).with_options(default_headers={"X-Agent-ID": "ann"})
        made = named.responses.create(**asking(max_output_tokens=SHORT))
        http.post("/llm/v1/agents/ann/fork", json={"name": "bob"}).raise_for_status()
        http.delete("/llm/v1/agents/ann").raise_for_status()
        assert known(named.responses.retrieve(made.id)) == known(made)


def test_of_a_response_that_an_older_version_stored_nothing_is_made_up(tmp_path: Path) -> None:
    with mounted(tmp_path) as http:
        made = openai_of(http).responses.create(**asking())
    session = as_before(tmp_path)
    with mounted(tmp_path) as http:
        found = openai_of(http).responses.retrieve(made.id)
    assert found.output_text == made.output_text != ""
    assert (found.status, found.usage, found.incomplete_details) == (None, None, None)
    assert found.created_at == int(session.created)
    assert (found.instructions, found.tools, found.temperature) == (None, None, None)


def as_before(home: Path) -> Session:
    """The only session of the home, now stored as it was before outcomes were."""
    with closing(SqliteSessionStore.open(home / "catalogue.sqlite3")) as store:
        [session] = store.load().sessions
        messages = tuple(evolve(one, outcome=None, note=None) for one in session.messages)
        store.commit(Commit(put=(evolve(session, messages=messages),)))
    return session


def notes(home: Path) -> list[str]:
    """What is noted of requests in a home that is closed."""
    with closing(SqliteSessionStore.open(home / "catalogue.sqlite3")) as store:
        sessions = store.load().sessions
    return [one.note for session in sessions for one in session.messages if one.note is not None]
