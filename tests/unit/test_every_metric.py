"""Every series of /metrics moves when what it counts happens: here is what moves each of them."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest
from attrs import define, evolve, field, frozen

from agentcache.adapters.http.app import Door, create_app
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.rates import RateLimiter
from agentcache.adapters.memory.clock import ManualClock
from agentcache.adapters.memory.keyring import MemoryKeyring
from agentcache.adapters.prometheus.metrics import PrometheusTelemetry
from agentcache.domain.access import Access
from agentcache.domain.conversation import Message
from agentcache.domain.errors import AgentCacheError, ModelError, StoreFull
from agentcache.domain.notices import Limits
from agentcache.domain.request import Tier
from agentcache.domain.turn import TurnState
from agentcache.ports.telemetry import SWAPS
from agentcache.settings import parse_rate
from tests.frail import Disk, OtherCodec
from tests.scraping import samples
from tests.scripted_service import ASKED, ScriptedService
from tests.talks import Talk
from tests.two_models import LONG, Swapped, begun, two_models
from tests.unit.test_canary import last_segment, spoil
from tests.world import Looped, World, looped

SYSTEM = "You are an agent among others, and all of you have been told the same, at some length."
LOOK = ({"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}},)


@define(eq=False)
class Ticking(ManualClock):
    """Time passes whenever somebody looks."""

    def monotonic(self) -> float:
        """Seconds since some moment."""
        self.now += 0.001
        return self.now


@define(eq=False)
class Seen:
    """Every series that was ever seen to move."""

    prometheus: PrometheusTelemetry = field(factory=PrometheusTelemetry)
    ever: set[str] = field(factory=set, init=False)
    _last: dict[str, float] = field(init=False)
    _world: World | None = field(default=None, init=False)

    @_last.default
    def _at_first(self) -> dict[str, float]:
        return self._now()

    def look(self) -> None:
        if self._world is not None:
            self.prometheus.gauges(self._world.conductor.levels())
        before, self._last = self._last, self._now()
        self.ever |= {name for name, value in self._last.items() if value != before[name]}

    @contextmanager
    def world(self, **settings: object) -> Iterator[World]:
        telemetry = {"telemetry": self.prometheus}
        with World(**telemetry, **settings) as world:  # type: ignore[arg-type]
            self._world = world
            yield world
            self.look()
        self._world = None

    @contextmanager
    def served(self, **settings: object) -> Iterator[Looped]:
        world = World(telemetry=self.prometheus, **settings)  # type: ignore[arg-type]
        with looped(world) as running:
            running.loop.wait_open()
            yield running

    def _now(self) -> dict[str, float]:
        return samples(self.prometheus.exposition()[0].decode())


@frozen(eq=False)
class Scene:
    """Something that happens, and the series that it moves."""

    play: Callable[[Seen], None]
    claims: frozenset[str]


SCENES: list[Scene] = []


def moves(*claims: str) -> Callable[[Callable[[Seen], None]], Callable[[Seen], None]]:
    def told(play: Callable[[Seen], None]) -> Callable[[Seen], None]:
        SCENES.append(Scene(play, frozenset(claims)))
        return play

    return told


def _histogram(name: str, label: str = "") -> tuple[str, str]:
    return tuple(f"{name}_{part}{label}" for part in ("count", "sum"))  # type: ignore[return-value]


# -- turns -------------------------------------------------------------------------------------


@moves(
    "prompt_tokens_total",
    "completion_tokens_total",
    "model_tokens_total",
    "step_tokens_total/prefill",
    "step_tokens_total/decode",
    "step_seconds_total",
    "turns_total/length",
    *_histogram("time_to_first_token_seconds"),
    *_histogram("inter_token_seconds"),
    "sessions",
    "pool_blocks_used",
    "pool_blocks_free",
    "hot_bytes",
    "warm_bytes",
    "cold_bytes",
    "stored_segments_total",
    "stored_bytes_total",
    "stored_bytes_last_day",
)
def a_turn(seen: Seen) -> None:
    with seen.world(clock=Ticking()) as world:
        world.say(Talk("ada", system=SYSTEM), "one")


@moves("turns_total/stop")
def the_models_end(seen: Seen) -> None:
    with seen.world(end_rate=0.5) as world:
        world.say(Talk("ada"), "one", max_tokens=60)


@moves("queued", "running", "turns_total/cancelled")
def a_queue_and_a_client_that_goes_away(seen: Seen) -> None:
    with seen.world(limits=Limits(batch=1)) as world:
        first, _ = (world.begin(Talk(name).ask("one", max_tokens=9)) for name in "ab")
        world.reach(first, TurnState.DECODING)
        seen.look()
        world.cancel(first)
        world.settle()


@moves("turns_total/failed")
def a_step_that_fails(seen: Seen) -> None:
    with seen.world() as world:
        world.engine.frailty.fail("submit", RuntimeError("the device is gone"))
        world.begin(Talk("ada").ask("one"))
        world.settle()


@moves("preemptions_total", "evicted_segments_total/hot", "evicted_bytes_total/hot")
def too_little_memory(seen: Seen) -> None:
    with seen.world(blocks=4, limits=Limits(reserve=1)) as world:
        for name in "ab":
            world.begin(Talk(name).ask(name * 400, max_tokens=400))
        world.settle()
        for name in "cdef":
            world.say(Talk(name), "one")


# -- rows that come back, or do not ------------------------------------------------------------


def _came_back(tier: str) -> tuple[str, ...]:
    totals = ("hits_total", "cached_tokens_total", "restored_tokens_total")
    return (*(f"{name}/{tier}" for name in totals), *_histogram("restore_seconds", f"/{tier}"))


@moves(*_came_back("hot"))
def from_hot(seen: Seen) -> None:
    _come_back(seen, Tier.HOT)


@moves(*_came_back("warm"), "restored_bytes_total/warm")
def from_warm(seen: Seen) -> None:
    _come_back(seen, Tier.WARM)


@moves(
    *_came_back("cold"), "restored_bytes_total/cold", "loaded_segments_total", "loaded_bytes_total"
)
def from_cold(seen: Seen) -> None:
    _come_back(seen, Tier.COLD)


def _come_back(seen: Seen, tier: Tier) -> None:
    with seen.world(clock=Ticking()) as world:
        talk = Talk("ada", system=SYSTEM)
        world.say(talk, "one")
        if tier is not Tier.HOT:
            world.rest_hot()
        if tier is Tier.COLD:
            world.leave_warm()
        assert world.say(talk, "two").admitted.tier is tier


@moves("misses_total/messages_changed")
def other_words(seen: Seen) -> None:
    with seen.world() as world:
        talk = Talk("ada")
        world.say(talk, "one")
        talk.history[0] = Message("user", "not one")
        world.say(talk, "two")


@moves("misses_total/system_changed")
def another_system_prompt(seen: Seen) -> None:
    with seen.world() as world:
        talk = Talk("ada", system=SYSTEM)
        world.say(talk, "one")
        talk.system = "You are somebody else."
        world.say(talk, "two")


@moves("misses_total/tools_changed")
def another_tool(seen: Seen) -> None:
    with seen.world() as world:
        talk = Talk("ada", system=SYSTEM)
        world.say(talk, "one")
        asked = talk.ask("two", max_tokens=4)
        world.begin(evolve(asked, conversation=evolve(asked.conversation, tools=LOOK)))
        world.settle()


@moves("misses_total/model_changed")
def another_model(seen: Seen) -> None:
    with seen.world() as world:
        talk = Talk("ada")
        world.say(talk, "one")
        world.digest = b"another model"
        world.restart()
        world.say(talk, "two")


@moves("misses_total/codec_changed")
def another_codec(seen: Seen) -> None:
    with seen.world(other_codecs=(OtherCodec,)) as world:
        talk = Talk("ada")
        world.say(talk, "one")
        world.say(talk, "two", codec=OtherCodec.name)


@moves("misses_total/no_session")
def an_answer_of_which_nobody_knows(seen: Seen) -> None:
    with seen.world() as world:
        history = [Message("user", "hi"), Message("assistant", "ho")]
        world.say(Talk("ada", history=history), "well?")


@moves(
    "misses_total/evicted",
    "evicted_segments_total/warm",
    "evicted_bytes_total/warm",
    "evicted_segments_total/cold",
    "evicted_bytes_total/cold",
)
def rows_that_had_to_leave(seen: Seen) -> None:
    with seen.world(disk=Disk()) as world:
        talk, room = Talk("ada"), world.conductor.keeper.room
        world.say(talk, "one")
        world.go_cold()
        cap, room.cap = room.cap, room.cold_bytes + 1
        world.say(Talk("bob", tenant="another"), "one")
        room.cap = cap
        world.say(talk, "two")


@moves("misses_total/corrupt", "corrupt_segments_total")
def rows_that_cannot_be_used(seen: Seen) -> None:
    with seen.world() as world:
        talk = Talk("ada")
        world.say(talk, "one")
        world.go_cold()
        for segment in world.segments(Tier.COLD):
            world.disk.segments.damage(segment.key)
        world.say(talk, "two")


@moves("canaries_total/agreed", "canaries_total/differed")
def rows_that_are_compared(seen: Seen) -> None:
    with seen.world(canary=True, limits=Limits(chunk=16, busy_chunk=8)) as world:
        talk = Talk("ada", system=SYSTEM)
        world.say(talk, "one")
        world.restart()
        world.say(talk, "two")
        world.restart()
        spoil(world, last_segment(world, "ada"))
        world.say(talk, "three")


# -- the home ----------------------------------------------------------------------------------


@moves("compacted_segments_total", "compacted_bytes_total")
def a_long_conversation(seen: Seen) -> None:
    with seen.world(blocks=256) as world:
        talk = Talk("ada")
        for number in range(20):
            world.say(talk, f"turn {number}")


@moves("read_only")
def a_full_disk(seen: Seen) -> None:
    with seen.world(disk=Disk()) as world:
        world.disk.fail("put", [StoreFull(1)] * 9)
        world.say(Talk("ada"), "one")
        seen.look()
        world.disk.recover()


@moves("write_queue_bytes")
def a_slow_disk(seen: Seen) -> None:
    with seen.world() as world:
        with world.disk.writes:
            said = world.begin(Talk("ada").ask("one", max_tokens=3))
            while said.number in world.conductor.planner.turns:
                world.conductor.round()
            seen.look()
        world.settle()


# -- refusals ----------------------------------------------------------------------------------


async def _refused(running: Looped, talk: Talk, **fields: object) -> None:
    with pytest.raises(AgentCacheError):
        await running.service.begin(talk.ask("one", **fields))


@moves("refused_total/too_long", "refused_total/invalid")
def what_can_never_be_answered(seen: Seen) -> None:
    async def scene() -> None:
        await _refused(running, Talk("ada", system="x y " * 900))
        await _refused(running, Talk("~ada"))

    with seen.served(context=512) as running:
        asyncio.run(scene())


@moves("refused_total/queue_full", "refused_total/queue_timeout", "refused_total/cancelled")
def who_finds_no_place(seen: Seen) -> None:
    async def scene() -> None:
        long = await running.service.begin(Talk("ada").ask("one", max_tokens=4000))
        await _refused(running, Talk("bob"), timeout=0)
        waiting = asyncio.create_task(running.service.begin(Talk("eve").ask("one")))
        while not await asyncio.wrap_future(running.loop.ask(lambda one: one.planner.waiting)):
            pass
        await _refused(running, Talk("bob"))
        waiting.cancel()
        await asyncio.wait((waiting,))
        await long.cancel()

    with seen.served(limits=Limits(batch=1, queue=1)) as running:
        asyncio.run(scene())


@moves("refused_total/unavailable")
def who_comes_when_it_ends(seen: Seen) -> None:
    with seen.served() as running:
        running.loop.stop(within=0)
        running.loop.join()
        asyncio.run(_refused(running, Talk("ada")))


@moves("refused_total/rate_limit", "refused_total/unauthenticated", "refused_total/forbidden")
def who_is_not_let_in(seen: Seen) -> None:
    service = ScriptedService()
    service.telemetry = seen.prometheus  # type: ignore[assignment]
    door = Door(MemoryKeyring({"a": Access("acme")}), hosts=frozenset({"edge"}))
    rates = RateLimiter(parse_rate("1/hour"), parse_rate(""))
    app = create_app(Edge(service, 100_000, rates=rates), door=door)

    async def asked(host: str, key: str) -> int:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            headers = {"x-api-key": key}
            answer = await client.post("/v1/chat/completions", json=ASKED, headers=headers)
        return answer.status_code

    async def scene() -> None:
        assert await asked("edge", "wrong") == 401
        assert await asked("elsewhere", "a") == 403
        assert [await asked("edge", "a") for _ in range(2)] == [200, 429]

    asyncio.run(scene())


@moves("refused_total/other")
def what_has_no_word_of_its_own(seen: Seen) -> None:
    seen.prometheus.refused("for a reason that nobody has thought of")


# -- models ------------------------------------------------------------------------------------


@moves(*(one for how in SWAPS for one in _histogram("swap_seconds", f"/{how}")))
def swaps(seen: Seen) -> None:
    def load(ref: str) -> None:
        it.world.clock.advance(4.0)
        if ref == "third":
            raise ModelError("third", "is broken")

    async def scene(it: Swapped) -> None:
        it.before_load = load
        await it.service.swap("other")
        with pytest.raises(ModelError):
            await it.service.swap("third")
        await it.service.begin(Talk("a").ask("hello", max_tokens=LONG))
        swap = asyncio.create_task(it.service.swap("memory", within=1000))
        await begun(it, swap)
        it.world.clock.advance(4.0)
        it.loop.stop(within=0)
        with pytest.raises(AgentCacheError):
            await swap

    with two_models(telemetry=seen.prometheus) as it:
        asyncio.run(scene(it))


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.play.__name__)
def test_what_happens_moves_all_that_counts_it(scene: Scene) -> None:
    seen = Seen()
    scene.play(seen)
    seen.look()
    assert scene.claims <= seen.ever, scene.claims - seen.ever


def test_there_is_no_series_that_nothing_moves() -> None:
    claimed = frozenset[str]().union(*(scene.claims for scene in SCENES))
    assert claimed == Seen()._last.keys()
