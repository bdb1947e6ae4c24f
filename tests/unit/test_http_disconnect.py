"""Clients that go away: their place is free at once, whatever the turn was waiting for."""

import asyncio

import pytest

from agentcache.adapters.http.app import create_app
from agentcache.adapters.http.edge import Edge
from agentcache.domain.events import Delta, Ended
from agentcache.domain.request import Finish
from tests.scripted_service import Call, ScriptedService, app_of, frames

pytestmark = pytest.mark.anyio
ENDED = Ended(Finish.STOP, 7, 5, 1)


class DeafCall(Call):
    """A client whose connection is closed for writing."""

    async def _send(self, message: object) -> None:
        raise OSError("gone")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("stream", [False, True])
async def test_one_that_leaves_the_queue_is_not_admitted_later(stream: bool) -> None:
    service = ScriptedService(doors=asyncio.Event())
    service.doors.clear()
    call = Call(app_of(service), {"stream": stream})
    running = asyncio.create_task(call.run())
    await service.waiting.wait()
    call.hang_up()
    await running
    assert service.gave_up.is_set()
    assert call.sent.empty()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("said", [(), (Delta("Hel", 1),)])
async def test_one_that_leaves_in_the_middle_frees_its_place(
    stream: bool, said: tuple[Delta, ...]
) -> None:
    service = ScriptedService(script=said)
    call = Call(app_of(service), {"stream": stream})
    running = asyncio.create_task(call.run())
    turn = await service.turns.get()
    if stream:
        await call.sent.get()
    call.hang_up()
    await running
    assert turn.cancelled.is_set()


async def test_one_that_leaves_in_the_very_moment_of_admission_frees_its_place() -> None:
    service = ScriptedService(script=(), doors=asyncio.Event())
    service.doors.clear()
    call = Call(app_of(service))
    running = asyncio.create_task(call.run())
    await service.waiting.wait()
    service.doors.set()
    call.hang_up()
    await running
    assert service.gave_up.is_set() or (await service.turns.get()).cancelled.is_set()


async def test_a_stream_whose_client_no_longer_takes_anything_frees_its_place() -> None:
    service = ScriptedService(script=(Delta("x", 1),))
    await DeafCall(app_of(service), {"stream": True}).run()
    assert (await service.turns.get()).cancelled.is_set()


async def test_one_that_stays_is_not_cancelled() -> None:
    service = ScriptedService(script=())
    call = Call(app_of(service))
    running = asyncio.create_task(call.run())
    turn = await service.turns.get()
    turn.tell(Delta("Hello", 1), ENDED)
    await running
    assert (await call.sent.get())["status"] == 200
    assert not turn.cancelled.is_set()


async def test_a_task_that_is_cancelled_from_outside_frees_its_place_and_stays_cancelled() -> None:
    service = ScriptedService(script=())
    running = asyncio.create_task(Call(app_of(service), {"stream": True}).run())
    turn = await service.turns.get()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert turn.cancelled.is_set()


async def test_draining_waits_for_those_who_are_being_answered() -> None:
    service = ScriptedService(script=())
    edge = Edge(service, 1000)
    call = Call(create_app(edge), {"stream": True})
    running = asyncio.create_task(call.run())
    turn = await service.turns.get()
    draining = asyncio.create_task(edge.drain(patience=60))
    turn.tell(Delta("Hello", 1), ENDED)
    await draining
    assert not turn.cancelled.is_set()
    await running


async def test_draining_ends_those_who_take_too_long_and_tells_them() -> None:
    service = ScriptedService(script=(Delta("Hel", 1),))
    edge = Edge(service, 1000)
    call = Call(create_app(edge), {"stream": True})
    running = asyncio.create_task(call.run())
    turn = await service.turns.get()
    await edge.drain(patience=0.01)
    assert turn.cancelled.is_set()
    await running
    sent = b"".join(call.sent.get_nowait().get("body", b"") for _ in range(call.sent.qsize()))
    error = frames(sent.decode())[-1]["error"]
    assert (error["code"], "draining" in error["message"]) == ("unavailable", True)


async def test_one_whom_draining_ends_before_it_heard_anything_is_told_when_to_come_back() -> None:
    service = ScriptedService(script=(Delta("Hel", 1),))
    edge = Edge(service, 1000)
    call = Call(create_app(edge))
    running = asyncio.create_task(call.run())
    await service.turns.get()
    await edge.drain(patience=0)
    await running
    start = call.sent.get_nowait()
    headers = dict(start["headers"])
    assert (start["status"], headers[b"retry-after"]) == (503, b"1")
    assert b'"unavailable"' in call.sent.get_nowait()["body"]


async def test_nothing_is_left_running_after_an_answer() -> None:
    service = ScriptedService()
    before = asyncio.all_tasks()
    await Call(app_of(service), {"stream": True}).run()
    await Call(app_of(service)).run()
    await asyncio.sleep(0)  # cancelled tasks end in the next round
    assert asyncio.all_tasks() == before


async def test_draining_is_over_when_those_whom_it_ended_are_told() -> None:
    service = ScriptedService(script=(Delta("Hel", 1),))
    edge = Edge(service, 1000)
    call = Call(create_app(edge), {"stream": True})
    running = asyncio.create_task(call.run())
    await service.turns.get()
    await edge.drain(patience=0)
    sent = b"".join(call.sent.get_nowait().get("body", b"") for _ in range(call.sent.qsize()))
    error = frames(sent.decode())[-1]["error"]
    assert (error["code"], "draining" in error["message"]) == ("unavailable", True)
    await running
