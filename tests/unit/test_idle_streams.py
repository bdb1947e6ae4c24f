"""Open streams that say nothing cost those that run nothing: what is done is counted, not timed."""

import asyncio
import gc
import sys
from types import FrameType

import pytest
from starlette.applications import Starlette

from agentcache.adapters.http.app import create_app
from agentcache.adapters.http.edge import Edge
from agentcache.domain.events import Delta
from agentcache.domain.notices import Limits
from agentcache.domain.turn import TurnState
from tests.scripted_service import Call, ScriptedService, ScriptedTurn
from tests.talks import Talk
from tests.world import World

pytestmark = pytest.mark.anyio
IDLE = 200
TOKENS = 20


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Calls:
    """How many functions this thread calls in a block; what garbage collection calls is not."""

    count = 0

    def __enter__(self) -> "Calls":
        gc.disable()
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_error: object) -> None:
        sys.setprofile(None)
        gc.enable()

    def _see(self, _frame: FrameType, event: str, _what: object) -> None:
        self.count += event in ("call", "c_call")


class DeafCall(Call):
    """A client that takes the start of an answer, and no more: its connection is full."""

    async def _send(self, message: dict[str, object]) -> None:
        await super()._send(message)
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()


Stream = tuple[Call, "asyncio.Task[None]", ScriptedTurn]


async def _opened(kind: type[Call], app: Starlette, service: ScriptedService) -> Stream:
    """A stream that has begun, as far as its client listens."""
    call = kind(app, {"stream": True})
    running = asyncio.create_task(call.run())
    for _ in ("start", "first frame"):
        await call.sent.get()
    return call, running, await service.turns.get()


async def _say(call: Call, turn: ScriptedTurn) -> None:
    for _ in range(TOKENS):
        turn.tell(Delta("a", 1))
        await call.sent.get()


async def _work_of_a_stream(others: int, kind: type[Call]) -> int:
    service = ScriptedService(script=())
    app = create_app(Edge(service, 10_000))
    idle = [await _opened(kind, app, service) for _ in range(others)]
    for _, _, turn in idle if kind is DeafCall else ():
        turn.tell(Delta("unheard", 1))
    call, running, turn = await _opened(Call, app, service)
    await _say(call, turn)
    with Calls() as calls:
        await _say(call, turn)
    for one, task, _ in [*idle, (call, running, turn)]:
        one.hang_up()
        await task
    return calls.count


@pytest.mark.parametrize("kind", [Call, DeafCall], ids=["silent", "deaf"])
async def test_the_edge_does_nothing_for_streams_that_are_idle(kind: type[Call]) -> None:
    alone, beside_others = [await _work_of_a_stream(others, kind) for others in (0, IDLE)]
    assert TOKENS < beside_others == alone


def _work_of_a_step(waiting: int) -> int:
    with World(limits=Limits(batch=4, queue=IDLE)) as world:
        said = world.begin(Talk("ada").ask("one", max_tokens=40))
        world.reach(said, TurnState.DECODING)
        for _ in range(waiting):  # there are places, but an agent has one turn at a time
            world.begin(Talk("ada").ask("two", max_tokens=1))
        world.conductor.round()
        world.conductor.round()  # by now all who came have been looked at
        with Calls() as calls:
            for _ in range(10):
                world.conductor.round()
        for number in tuple(world.conductor.planner.turns):
            world.conductor.planner.cancel(number)
        world.settle()
    return calls.count


def test_the_scheduler_does_nothing_for_turns_that_wait() -> None:
    alone, beside_others = _work_of_a_step(0), _work_of_a_step(IDLE)
    assert 0 < beside_others == alone
