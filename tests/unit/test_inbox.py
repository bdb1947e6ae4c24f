"""The inbox of one listener, and the bell that other threads wake its event loop with."""

import asyncio
import threading

import pytest

from agentcache.inbox import Bell, Inbox

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class CountedLoop:
    """An event loop that counts how often other threads wake it."""

    def __init__(self) -> None:
        self.here, self.wakes = asyncio.get_running_loop(), 0

    def call_soon_threadsafe(self, *call: object) -> None:
        self.wakes += 1
        self.here.call_soon_threadsafe(*call)


async def taken(inbox: Inbox[int], count: int) -> list[int | None]:
    return [await inbox.get() for _ in range(count)]


async def test_what_is_put_from_another_thread_comes_in_order() -> None:
    inbox, bell = Inbox[int](), Bell(asyncio.get_running_loop())
    thread = threading.Thread(target=lambda: [bell.put(inbox, one) for one in range(2000)])
    thread.start()
    assert await taken(inbox, 2000) == list(range(2000))
    thread.join()


async def test_one_wake_up_does_for_all_that_is_put_before_it_is_answered() -> None:
    loop = CountedLoop()
    bell = Bell(loop)
    inboxes = [Inbox[int]() for _ in range(8)]
    for inbox in inboxes:
        bell.put(inbox, 1)
    assert [await inbox.get() for inbox in inboxes] == [1] * 8
    assert loop.wakes == 1


async def test_what_is_put_after_the_wake_up_was_answered_wakes_again() -> None:
    loop, inbox = CountedLoop(), Inbox[int]()
    bell = Bell(loop)
    for number in range(3):
        bell.put(inbox, number)
        assert await inbox.get() == number
    assert loop.wakes == 3


async def test_who_waits_is_told_when_nothing_has_come_for_a_while_again_and_again() -> None:
    inbox = Inbox[int]()
    assert [await inbox.get(0.001) for _ in range(3)] == [None, None, None]
    inbox.put(1)
    assert await inbox.get(0.001) == 1


async def test_what_comes_puts_the_alarm_off() -> None:
    inbox, loop = Inbox[int](), asyncio.get_running_loop()
    for number in range(4):
        loop.call_later(0.02, inbox.put, number)
        assert await inbox.get(0.05) == number


async def test_items_that_nobody_waits_for_are_kept() -> None:
    inbox = Inbox[int]()
    inbox.put(1)
    inbox.put(2)
    assert await taken(inbox, 2) == [1, 2]


async def test_a_listener_that_is_cancelled_loses_nothing() -> None:
    inbox = Inbox[int]()
    listener = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    inbox.put(1)
    listener.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listener
    assert await inbox.get() == 1


def test_what_comes_after_the_event_loop_is_closed_is_lost_in_silence() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    Bell(loop).put(Inbox[int](), 1)
