"""The engine thread: how it opens, serves, drains, ends and fails."""

import logging
import threading
from collections.abc import Iterator
from queue import Empty, Queue

import pytest
from attrs import define, evolve, field

from agentcache.adapters.clock import SystemClock
from agentcache.adapters.memory.engine import MemoryEngine
from agentcache.assembly import Assembly
from agentcache.conductor import Conductor
from agentcache.domain.errors import (
    AgentCacheError,
    IntegrityError,
    ModelError,
    Overloaded,
    PromptTooLong,
    Unavailable,
)
from agentcache.domain.events import Admitted, Ended, Event
from agentcache.domain.notices import Limits
from agentcache.domain.request import Finish
from agentcache.domain.session import Cursor, Session, SessionKey
from agentcache.loop import EngineLoop
from agentcache.outbox import Post
from agentcache.service import Ask
from tests.talks import Talk
from tests.world import PATIENCE, Looped, World, looped


@define(eq=False)
class Heard:
    """What is told of one turn, to be waited for."""

    events: "Queue[Event | AgentCacheError]" = field(factory=Queue)

    def next(self) -> Event | AgentCacheError:
        return self.events.get(timeout=PATIENCE)

    def last(self) -> Event | AgentCacheError:
        while not isinstance(event := self.next(), Ended | AgentCacheError):
            pass
        return event


@pytest.fixture
def running() -> Iterator[Looped]:
    with looped(World(limits=Limits(batch=1))) as running:
        running.loop.wait_open()
        yield running


def begun(running: Looped, ask: Ask) -> Heard:
    """A turn that is queued."""
    heard = Heard()
    request = running.service._prepared(ask)
    running.loop.submit(request, heard.events.put).result(PATIENCE)
    return heard


def long_turn(running: Looped, name: str = "ada") -> Heard:
    return begun(running, Talk(name).ask("one", max_tokens=8000))


class TestOpening:
    def test_it_serves_what_was_assembled(self, running: Looped) -> None:
        assert running.loop.phase == "serving"
        assert running.loop.conductor.engine is running.world.engine
        assert running.loop.is_alive()

    def test_before_that_there_is_nobody_to_ask(self) -> None:
        world, doors = World(), threading.Event()

        def assemble(post: Post) -> Conductor:
            doors.wait(PATIENCE)
            return world.assembly()(post)

        world.codec.reads = world.disk.reads
        loop = EngineLoop(assemble, world.clock, world.telemetry)
        with pytest.raises(Unavailable, match="starting"):
            _ = loop.conductor
        loop.start()
        answer = loop.ask(lambda conductor: conductor.engine.card.name)
        doors.set()
        assert answer.result(PATIENCE) == "memory"  # who asks early waits
        loop.stop(0)
        loop.join()

    def test_what_keeps_it_from_opening_is_told(self, caplog: pytest.LogCaptureFixture) -> None:
        world, problem = World(), ModelError("it", "is not there")

        def assemble(_post: Post) -> Conductor:
            raise problem

        loop = EngineLoop(assemble, world.clock, world.telemetry)
        loop.start()
        with pytest.raises(ModelError) as raised:
            loop.wait_open()
        loop.join()
        assert raised.value is problem
        assert (loop.phase, loop.is_alive()) == ("failed", False)
        assert not caplog.records

    def test_a_home_that_cannot_be_read_is_closed_again(self) -> None:
        world = World()
        world.disk.fail("load", OSError("unreadable"))
        assert_not_opened(world, world.assembly(), OSError)

    def test_the_home_is_closed_when_there_is_no_model(self) -> None:
        world = World()
        assert_not_opened(world, evolve(world.assembly(), load_engine=_unloadable), OSError)

    def test_home_and_model_are_closed_when_they_do_not_fit_together(self) -> None:
        world = World()
        lost = Session(SessionKey("default", b"root", "ada"), cursor=Cursor(b"nowhere", 1))
        world.disk.sessions._sessions[lost.key] = lost
        assert_not_opened(world, world.assembly(), KeyError)
        assert world.engine.closed

    def test_it_may_be_stopped_before_it_is_open(self) -> None:
        with looped(World()) as running:
            running.loop.stop(within=0)
            running.loop.join()
            assert running.loop.phase == "stopped"


def _unloadable() -> MemoryEngine:
    raise OSError("unreadable")


def assert_not_opened(world: World, assembly: Assembly, problem: type[Exception]) -> None:
    """It does not open because of `problem`, and leaves nothing open."""
    loop = EngineLoop(assembly, world.clock, world.telemetry)
    loop.start()
    with pytest.raises(problem):
        loop.wait_open()
    loop.join()
    with pytest.raises(ValueError, match="closed"):
        world.disk.sessions.load()
    assert not any(one.name == "agentcache-store" for one in threading.enumerate())


class TestServing:
    def test_a_turn_is_told_as_it_goes(self, running: Looped) -> None:
        heard = begun(running, Talk("ada").ask("one", max_tokens=3))
        assert isinstance(heard.next(), Admitted)
        assert isinstance(heard.last(), Ended)

    def test_what_is_asked_is_answered_on_its_thread(self, running: Looped) -> None:
        name = running.loop.ask(lambda _: threading.current_thread().name).result(PATIENCE)
        assert name == "agentcache-engine"

    def test_an_error_goes_to_who_asked(self, running: Looped) -> None:
        answer = running.loop.ask(lambda conductor: conductor.planner.turns[77])
        with pytest.raises(KeyError):
            answer.result(PATIENCE)
        assert running.loop.phase == "serving"

    def test_a_refusal_goes_to_who_asked(self, running: Looped) -> None:
        request = running.service._prepared(Talk("ada").ask("many " * 9000))
        with pytest.raises(PromptTooLong):
            running.loop.submit(request, lambda _: None).result(PATIENCE)

    def test_nothing_is_done_for_who_does_not_wait_for_it(self, running: Looped) -> None:
        doors, done = threading.Event(), []
        running.loop.post(lambda: doors.wait(PATIENCE) and None)
        answer = running.loop.ask(lambda _: done.append("it"))
        assert answer.cancel()
        doors.set()
        running.loop.ask(lambda _: None).result(PATIENCE)
        assert not done

    def test_a_cancelled_turn_ends(self, running: Looped) -> None:
        heard = Heard()
        request = running.service._prepared(Talk("ada").ask("one", max_tokens=8000))
        number = running.loop.submit(request, heard.events.put).result(PATIENCE)
        running.loop.cancel(number)
        last = heard.last()
        assert isinstance(last, Ended)
        assert last.finish is Finish.CANCELLED

    def test_who_waits_too_long_is_refused_without_anybody_asking(self) -> None:
        talk = Talk("ada")
        with World() as before:
            before.say(talk, "one")
        disk, clock = before.disk, SystemClock()
        world = World(limits=Limits(batch=1), clock=clock, disk=disk)  # type: ignore[arg-type]
        with looped(world, patience=0.01) as running:
            running.loop.wait_open()
            with disk.reads:  # nothing happens but time
                first = begun(running, talk.ask("two", max_tokens=2))
                late = begun(running, Talk("bob").ask("two"))
                assert isinstance(late.last(), Overloaded)
            assert isinstance(first.last(), Ended)

    def test_it_sleeps_until_the_first_deadline_at_most(self) -> None:
        with World(limits=Limits(batch=1)) as world:
            loop = EngineLoop(world.assembly(), world.clock, world.telemetry)
            assert loop._patience(world.conductor) == 1.0
            world.begin(Talk("ada").ask("one", max_tokens=9))
            world.step()
            world.begin(Talk("bob").ask("two", max_tokens=9, timeout=0.5))
            assert loop._patience(world.conductor) == pytest.approx(0.5)

    def test_levels_are_told_when_there_is_nothing_to_do(self, running: Looped) -> None:
        begun(running, Talk("ada").ask("one", max_tokens=1)).last()
        while running.world.telemetry.levels.get("sessions") != 1:
            running.loop.ask(lambda _: None).result(PATIENCE)
        assert running.world.telemetry.levels["running"] == 0

    def test_its_heart_beats(self, running: Looped) -> None:
        running.world.clock.advance(50)
        while running.loop.beat < 50:
            running.loop.ask(lambda _: None).result(PATIENCE)


class TestDraining:
    def test_who_waits_and_who_comes_is_refused_and_who_runs_may_finish(
        self, running: Looped
    ) -> None:
        doors = threading.Event()
        running.loop.post(lambda: doors.wait(PATIENCE) and None)
        turns = [Heard(), Heard(), Heard()]
        answers = []
        for name, heard in zip("abc", turns, strict=True):
            request = running.service._prepared(Talk(name).ask("one", max_tokens=400))
            answers.append(running.loop.submit(request, heard.events.put))
            if name == "a":
                doors.set()
                assert isinstance(turns[0].next(), Admitted)
                doors.clear()
                running.loop.post(lambda: doors.wait(PATIENCE) and None)
            if name == "b":
                running.loop.stop(within=1000)
        doors.set()
        with pytest.raises(Unavailable, match="draining"):
            answers[2].result(PATIENCE)
        last = turns[0].last()
        assert isinstance(last, Ended)
        assert (last.finish, last.completion) == (Finish.LENGTH, 400)
        assert isinstance(turns[1].last(), Unavailable)
        running.loop.join()
        assert running.loop.phase == "stopped"

    def test_who_still_runs_at_the_deadline_is_cancelled(self, running: Looped) -> None:
        heard = long_turn(running)
        assert isinstance(heard.next(), Admitted)
        running.loop.stop(within=10)
        running.loop.ask(lambda _: None)
        running.world.clock.advance(10)
        last = heard.last()
        assert isinstance(last, Unavailable)
        assert last.reason == "draining"
        running.loop.join()

    def test_everything_is_committed_before_it_ends(self, running: Looped) -> None:
        with running.world.disk.writes:
            heard = begun(running, Talk("ada").ask("one", max_tokens=1))
            running.loop.stop(within=1000)
        running.loop.join()
        assert isinstance(heard.last(), Ended)
        (session,) = running.world.disk.sessions.reopened().load().sessions
        assert session.name == "ada"

    def test_nobody_is_left_hanging_after_the_end(self, running: Looped) -> None:
        running.loop.stop(within=0)
        running.loop.join()
        with pytest.raises(Unavailable, match="stopped"):
            running.loop.ask(lambda conductor: conductor).result(0)
        running.loop.cancel(1)
        called: list[int] = []
        running.loop.post(lambda: called.append(1))
        assert called == [1]

    def test_a_late_call_that_fails_harms_nobody(
        self, running: Looped, caplog: pytest.LogCaptureFixture
    ) -> None:
        running.loop.stop(within=0)
        running.loop.join()
        running.loop.post(_bug)
        assert [one.message for one in caplog.records] == ["a call came too late"]


def _bug() -> None:
    raise ZeroDivisionError


class TestFailing:
    def test_everybody_is_told(self, running: Looped, caplog: pytest.LogCaptureFixture) -> None:
        first, second = long_turn(running), long_turn(running, "bob")
        assert isinstance(first.next(), Admitted)
        running.loop.post(_bug)
        assert isinstance(first.last(), Unavailable)
        assert isinstance(second.last(), Unavailable)
        running.loop.join()
        assert (running.loop.phase, running.loop.is_alive()) == ("failed", False)
        assert isinstance(running.loop.problem, ZeroDivisionError)
        assert "the engine thread ends" in caplog.messages
        with pytest.raises(Unavailable, match="failed"):
            running.loop.ask(lambda conductor: conductor).result(0)
        with pytest.raises(ZeroDivisionError):
            running.loop.wait_open()

    def test_what_was_answered_is_committed_and_told(self, running: Looped) -> None:
        with running.world.disk.writes:
            heard = begun(running, Talk("ada").ask("one", max_tokens=2))
            while running.loop.ask(lambda one: one.planner.turns).result(PATIENCE):
                pass
            running.loop.post(_bug)
        assert isinstance(heard.last(), Ended)
        running.loop.join()
        (session,) = running.world.disk.sessions.reopened().load().sessions
        assert session.name == "ada"

    def test_who_waits_for_a_commit_that_never_comes_is_told(self, running: Looped) -> None:
        """The retry of a failed write comes too late for the store thread."""
        running.world.disk.segments.capacity = 10
        with running.world.disk.writes:
            heard = begun(running, Talk("ada").ask("one", max_tokens=2))
            while running.loop.ask(lambda one: one.planner.turns).result(PATIENCE):
                pass
            running.loop.post(_bug)
        assert isinstance(heard.last(), Ended)

    def test_a_broken_invariant_is_the_end_and_is_logged(
        self, running: Looped, caplog: pytest.LogCaptureFixture
    ) -> None:
        begun(running, Talk("ada").ask("one", max_tokens=2)).last()
        running.loop.post(running.loop.conductor.keeper.tiers._warm.clear)
        running.loop.join()
        assert isinstance(running.loop.problem, IntegrityError)
        assert [one.levelno for one in caplog.records] == [logging.ERROR]

    def test_a_model_that_cannot_be_closed_keeps_nobody_waiting(
        self, running: Looped, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hook: Queue[object] = Queue()
        monkeypatch.setattr(threading, "excepthook", hook.put)
        heard = long_turn(running)
        running.loop.ask(lambda one: setattr(one, "engine", _Unclosable(one.engine)))
        running.loop.stop(within=0)
        assert isinstance(heard.last(), Unavailable)
        running.loop.join()
        assert hook.get(timeout=PATIENCE)
        with pytest.raises(Unavailable):
            running.loop.ask(lambda conductor: conductor).result(0)
        with pytest.raises(Empty):
            running.loop._inbox.get_nowait()


class _Unclosable:
    """Another engine's calls, but `close`."""

    def __init__(self, engine: object) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def close(self) -> None:
        raise OSError
