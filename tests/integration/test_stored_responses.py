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
from tests.integration.test_openai_responses import SCHEMA, asking
from tests.whole_service import whole_service

SHORT, LONG = 3, 400
KNOWN = ("status", "created_at", "usage", "incomplete_details", "error", "output", "store")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def known(response: Any) -> dict[str, Any]:
    """What a response says of itself, apart from what its request said."""
    told = response.model_dump()
    return {name: told[name] for name in KNOWN}


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
    assert found.output == made.output
    assert (found.status, found.usage, found.incomplete_details) == (None, None, None)
    assert found.created_at == int(session.created)


def as_before(home: Path) -> Session:
    """The only session of the home, now stored as it was before outcomes were."""
    with closing(SqliteSessionStore.open(home / "catalogue.sqlite3")) as store:
        [session] = store.load().sessions
        messages = tuple(evolve(one, outcome=None) for one in session.messages)
        store.commit(Commit(put=(evolve(session, messages=messages),)))
    return session
