"""A call that is cut off is told in no dialect, nor shown as text."""

from typing import Any

import pytest

from agentcache.domain.answer import AnswerFormat, Reading
from agentcache.domain.events import Delta, Ended
from agentcache.domain.request import Finish
from agentcache.domain.tool_prompt import CALLS, parse_calls
from tests.scripted_service import Said as Event
from tests.scripted_service import ScriptedService, app_of, client_of
from tests.stream_grammars import CHECKS
from tests.unit.test_http_swap import ASKS

pytestmark = pytest.mark.anyio
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "look", "parameters": {}}}
READING = Reading(AnswerFormat(None, CALLS, parse_calls), (TOOL,), "turn")
DIALECTS = [path for path in ASKS if path != "/v1/completions"]  # where calls are read
BEGUN = (Delta("Wait.", 1), Delta('<tool_call>{"name": "lo', 4))
CUT = Ended(Finish.LENGTH, 7, 5, 5)
STOPPED = Ended(Finish.STOP, 7, 5, 5, stop="ok")
BY_ITSELF = Ended(Finish.STOP, 7, 5, 5)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def asked(path: str, script: tuple[Event, ...], stream: bool) -> str:
    async with client_of(app_of(ScriptedService(script=script, reading=READING))) as client:
        body = ASKS[path] | {"model": "tiny", "stream": stream}
        answer = await client.post(path, json=body)
    assert answer.status_code == 200
    return answer.text


@pytest.mark.parametrize("path", DIALECTS)
@pytest.mark.parametrize("end", [CUT, STOPPED])
async def test_of_a_call_that_is_cut_off_only_what_was_said_before_is_told(
    path: str, end: Ended
) -> None:
    whole = await asked(path, (*BEGUN, end), stream=False)
    streamed = await asked(path, (*BEGUN, end), stream=True)
    assert CHECKS[path](streamed).text == "Wait."
    for told in (whole, streamed):
        assert "Wait." in told
        assert "tool_call>" not in told


@pytest.mark.parametrize("path", DIALECTS)
async def test_where_there_is_nothing_else_the_answer_is_empty(path: str) -> None:
    streamed = await asked(path, (*BEGUN[1:], CUT), stream=True)
    assert CHECKS[path](streamed).text == ""
    assert "tool_call>" not in await asked(path, (*BEGUN[1:], CUT), stream=False)


@pytest.mark.parametrize("path", DIALECTS)
async def test_what_a_model_ends_by_itself_is_told_as_it_is(path: str) -> None:
    streamed = await asked(path, (*BEGUN, BY_ITSELF), stream=True)
    assert CHECKS[path](streamed).text == 'Wait.<tool_call>{"name": "lo'
