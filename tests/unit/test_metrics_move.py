"""The metrics of real turns: each is seen to move when what it counts happens, and to stay else."""

from collections.abc import Callable, Iterator

import httpx
import pytest
from attrs import define, field

from agentcache.adapters.http.app import create_app
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.prometheus.metrics import PrometheusTelemetry
from agentcache.domain.errors import AgentCacheError, StoreFull
from agentcache.domain.notices import Limits
from agentcache.domain.request import Tier
from agentcache.domain.turn import TurnState
from tests.frail import Disk
from tests.scraping import samples
from tests.talks import Talk
from tests.world import World, looped

pytestmark = pytest.mark.anyio
SYSTEM = "You are an agent among others, and all of you have been told the same."


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@define(eq=False)
class Scraped:
    """A world whose metrics are scraped again and again."""

    world: World
    prometheus: PrometheusTelemetry
    _before: dict[str, float] = field(factory=dict, init=False)

    def now(self) -> dict[str, float]:
        self.prometheus.gauges(self.world.conductor.levels())
        return samples(self.prometheus.exposition()[0].decode())

    def moved(self) -> dict[str, float]:
        """How much each sample that changed has changed since the last call."""
        before, self._before = self._before, self.now()
        changes = {name: value - before.get(name, 0) for name, value in self._before.items()}
        return {name: change for name, change in changes.items() if change}


def _scraped(**settings: object) -> Iterator[Scraped]:
    prometheus = PrometheusTelemetry()
    with World(telemetry=prometheus, disk=Disk(), **settings) as world:  # type: ignore[arg-type]
        scraped = Scraped(world, prometheus)
        scraped.moved()
        yield scraped


@pytest.fixture
def scraped() -> Iterator[Scraped]:
    yield from _scraped()


@pytest.fixture
def small() -> Iterator[Scraped]:
    """Four blocks of KV memory."""
    yield from _scraped(blocks=4, limits=Limits(reserve=1))


def test_a_turn_moves_what_counts_its_tokens(scraped: Scraped) -> None:
    said = scraped.world.say(Talk("ada", system=SYSTEM), "one", max_tokens=6)
    moved, prompt = scraped.moved(), len(said.request.prompt)
    expected = {
        "prompt_tokens_total": prompt,
        "completion_tokens_total": 6,
        "model_tokens_total": prompt + 5,
        "step_tokens_total/prefill": prompt,
        "step_tokens_total/decode": 5,
        "turns_total/length": 1,
        "time_to_first_token_seconds_count": 1,
        "inter_token_seconds_count": 5,
        "sessions": 1,
    }
    assert expected.items() <= moved.items()
    assert not [name for name in moved if name.startswith(("hits", "misses", "restore"))]


def test_what_a_turn_leaves_behind_shows_in_every_tier(scraped: Scraped) -> None:
    scraped.world.say(Talk("ada"), "one")
    moved = scraped.moved()
    assert moved["pool_blocks_used"] == -moved["pool_blocks_free"] > 0
    assert moved["hot_bytes"] > moved["warm_bytes"] > 0
    assert moved["cold_bytes"] >= moved["stored_bytes_total"] == moved["stored_bytes_last_day"] > 0
    assert moved["stored_segments_total"] == len(scraped.world.segments(Tier.COLD))
    scraped.world.go_cold()
    scraped.world.conductor.round()
    moved = scraped.moved()
    assert moved["warm_bytes"] < 0
    assert moved["hot_bytes"] < 0
    assert "cold_bytes" not in moved


@pytest.mark.parametrize("tier", [Tier.HOT, Tier.WARM, Tier.COLD])
def test_what_a_turn_gets_back_is_told_by_tier(scraped: Scraped, tier: Tier) -> None:
    world, talk = scraped.world, Talk("ada", system=SYSTEM)
    world.say(talk, "one")
    if tier is not Tier.HOT:
        world.rest_hot()
    if tier is Tier.COLD:
        world.leave_warm()
    scraped.moved()
    said = world.say(talk, "two")
    moved, cached = scraped.moved(), said.admitted.cached
    assert {name for name in moved if name.startswith("hits")} == {f"hits_total/{tier.value}"}
    assert moved[f"cached_tokens_total/{tier.value}"] == cached
    assert moved[f"restored_tokens_total/{tier.value}"] == cached
    assert moved[f"restore_seconds_count/{tier.value}"] == 1
    assert ("loaded_bytes_total" in moved) == (tier is Tier.COLD)
    assert (moved.get(f"restored_bytes_total/{tier.value}", 0) > 0) == (tier is not Tier.HOT)
    if tier is Tier.COLD:
        assert moved["loaded_bytes_total"] == moved["restored_bytes_total/cold"]
        assert moved["loaded_segments_total"] > 0


def test_a_miss_is_told_with_its_reason(scraped: Scraped) -> None:
    talk = Talk("ada")
    scraped.world.say(talk, "one")
    talk.history[0] = Talk().ask("not one").conversation.messages[0]
    scraped.world.say(talk, "two")
    assert scraped.moved()["misses_total/messages_changed"] == 1


def test_a_segment_that_cannot_be_used_is_told(scraped: Scraped) -> None:
    world, talk = scraped.world, Talk("ada")
    world.say(talk, "one")
    world.go_cold()
    for segment in world.segments(Tier.COLD):
        world.disk.segments.damage(segment.key)
    world.say(talk, "two")
    moved = scraped.moved()
    assert moved["corrupt_segments_total"] > 0
    assert moved["misses_total/corrupt"] == 1


def test_who_gives_way_in_hot_memory_is_told(small: Scraped) -> None:
    for name in "abcdef":
        small.world.say(Talk(name), "one")
    moved = small.moved()
    assert moved["evicted_segments_total/hot"] == 2
    row = small.world.spec.row_bytes + small.world.spec.window_row_bytes
    assert moved["evicted_bytes_total/hot"] == 2 * 256 * row


def test_who_gives_way_in_ram_and_on_disk_is_told(scraped: Scraped) -> None:
    world, keeper = scraped.world, scraped.world.conductor.keeper
    world.say(Talk("ada"), "one")
    world.leave_warm()
    assert scraped.moved()["evicted_segments_total/warm"] > 0
    keeper.room.cap = keeper.room.cold_bytes + 1
    world.rest_hot()
    world.say(Talk("bob", tenant="another"), "one")  # as much as ada's
    moved = scraped.moved()
    assert moved["evicted_segments_total/cold"] > 0
    assert moved["evicted_bytes_total/cold"] > 0


def test_who_gives_a_place_up_is_told(small: Scraped) -> None:
    world = small.world
    said = [world.begin(Talk(name).ask(name * 400, max_tokens=400)) for name in "ab"]
    world.settle()
    assert [one.ended.completion for one in said] == [400, 400]
    assert small.moved()["preemptions_total"] >= 1


def test_a_queue_shows_while_it_is_one() -> None:
    for scraped in _scraped(limits=Limits(batch=1)):
        world = scraped.world
        first, _ = (world.begin(Talk(name).ask("one", max_tokens=9)) for name in "ab")
        world.reach(first, TurnState.DECODING)
        moved = scraped.moved()
        assert (moved["queued"], moved["running"]) == (1, 1)
        world.settle()
        moved = scraped.moved()
        assert (moved["queued"], moved["running"]) == (-1, -1)


def test_a_home_that_cannot_be_written_shows(scraped: Scraped) -> None:
    world = scraped.world
    world.disk.fail("put", [StoreFull(1)] * 9)
    world.say(Talk("ada"), "one")
    assert scraped.moved()["read_only"] == 1
    world.disk.recover()
    world.say(Talk("bob"), "two")
    assert scraped.moved()["read_only"] == -1


def test_what_waits_for_the_disk_shows(scraped: Scraped) -> None:
    world = scraped.world
    with world.disk.writes:
        said = world.begin(Talk("ada").ask("one", max_tokens=3))
        while said.number in world.conductor.planner.turns:
            world.conductor.round()
        assert scraped.moved()["write_queue_bytes"] > 0
    world.settle()
    assert scraped.moved()["write_queue_bytes"] < 0


# -- over HTTP ---------------------------------------------------------------------------------


@define(eq=False)
class Site:
    """A served world, whose /metrics is scraped."""

    client: httpx.AsyncClient
    _before: dict[str, float] = field(factory=dict, init=False)

    async def ask(self, **fields: object) -> int:
        asked = {
            "model": "memory",
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 4,
        }
        answer = await self.client.post("/v1/chat/completions", json=asked | fields)
        return answer.status_code

    async def moved(self) -> dict[str, float]:
        before, self._before = self._before, samples((await self.client.get("/metrics")).text)
        changes = {name: value - before.get(name, 0) for name, value in self._before.items()}
        return {name: change for name, change in changes.items() if change}


async def _with_site(use: Callable[[Site], object], **limits: int) -> None:
    prometheus = PrometheusTelemetry()
    world = World(telemetry=prometheus, limits=Limits(**limits), context=512)  # type: ignore[arg-type]
    with looped(world) as running:
        running.loop.wait_open()
        app = create_app(Edge(running.service, 10_000), prometheus)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
            site = Site(client)
            await site.moved()
            await use(site)  # type: ignore[misc]


async def test_a_scrape_shows_what_was_answered() -> None:
    async def use(site: Site) -> None:
        assert await site.ask() == 200
        moved = await site.moved()
        assert moved["turns_total/length"] == 1
        assert moved["completion_tokens_total"] == 4

    await _with_site(use)


@pytest.mark.parametrize(
    ("fields", "limits", "status", "reason"),
    [
        ({"messages": [{"role": "user", "content": "x y " * 900}]}, {}, 400, "too_long"),
        ({}, {"queue": 0}, 429, "queue_full"),
    ],
)
async def test_a_scrape_shows_what_was_refused(
    fields: dict[str, object], limits: dict[str, int], status: int, reason: str
) -> None:
    async def use(site: Site) -> None:
        assert await site.ask(**fields) == status
        moved = await site.moved()
        refused = {name: value for name, value in moved.items() if name.startswith("refused")}
        assert refused == {f"refused_total/{reason}": 1}

    await _with_site(use, **limits)


async def test_who_waited_in_vain_is_told() -> None:
    world = World(limits=Limits(batch=1))
    with looped(world) as running:
        running.loop.wait_open()
        long = await running.service.begin(Talk("ada").ask("one", max_tokens=4000))
        with pytest.raises(AgentCacheError, match="no place became free"):
            await running.service.begin(Talk("bob").ask("one", timeout=0))
        await long.cancel()
    assert world.telemetry.refusals == ["queue_timeout"]
