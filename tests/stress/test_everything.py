"""Anything that may happen, in any order: every answer is right, and nothing is left behind."""

from collections.abc import Callable

import pytest
from attrs import define, evolve
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from agentcache import compactor
from agentcache.adapters.memory.hash_model import hash_spec
from agentcache.adapters.memory.segment_store import MemorySegmentStore
from agentcache.domain import compaction
from agentcache.domain.errors import PromptTooLong, StoreFull
from agentcache.domain.events import Ended
from agentcache.domain.notices import Limits
from agentcache.domain.request import Finish, Sampling, Tier
from agentcache.expiry import GRACE_SECONDS
from agentcache.outbox import FILE_OVERHEAD
from tests.frail import CountingCodec, Disk, OtherCodec
from tests.talks import Said, Talk
from tests.world import World

SYSTEM = "You are one of several agents, all of which are told the same at first."
ROOM = 1 << 30
ROOMY = 10_000_000
FLOOR = 20_000
LONG = "tell " * 60
WORDS = ("yes", "no", "and then?", LONG, "\N{EURO SIGN}uro", "<|im_end|> is not said")
PROBLEMS = (lambda: StoreFull(100), lambda: OSError("the disk is gone"))

words = st.sampled_from(WORDS)
talks = st.integers(0, 5)
caps = st.sampled_from([3, 12, 10_000]).map(lambda segments: segments * (FILE_OVERHEAD + 2_000))
specs = st.sampled_from(
    [hash_spec(), hash_spec(), hash_spec(window=16), hash_spec(state=True), hash_spec(1, 40, True)]
)
worlds = st.builds(
    World,
    limits=st.integers(1, 3).map(lambda batch: Limits(batch, chunk=24, busy_chunk=9, reserve=16)),
    spec=specs,
    blocks=st.sampled_from([2, 3, 64]),
    disk_cap=caps,
    in_flight=st.integers(1, 2),
    end_rate=st.sampled_from([0.1, 0.01]),
    durable=st.booleans(),
    least_shared=st.sampled_from([1, 8, 64]),
    disk_floor=st.just(FLOOR),
    steady=st.just(True),
    other_codecs=st.just((OtherCodec,)),
    disk=st.sampled_from([40_000, None, None]).map(lambda room: Disk(MemorySegmentStore(room))),
)


def a_merge_fits(message: str, *of_what: object) -> None:
    """What was about to be merged was just looked at: that it cannot be replaced is a bug."""
    raise AssertionError(message % of_what)


@define(eq=False)
class Client:
    """An agent, and the turn that it waits for."""

    talk: Talk
    said: Said | None = None
    kept: int = 0  # tokens that it was promised to find again


def clients() -> list[Client]:
    """Two with names of their own, two that only hint, two without a name; most share a prefix."""
    return [
        Client(Talk("ada", system=SYSTEM)),
        Client(Talk("bob", system=SYSTEM)),
        Client(Talk("hint", exclusive=False, system=SYSTEM)),
        Client(Talk("hint", exclusive=False)),
        Client(Talk(system=SYSTEM)),
        Client(Talk(tenant="other", system=SYSTEM)),
    ]


class Everything(RuleBasedStateMachine):
    """`harmed` tells that a disk or an engine did not do its duty: then turns may be forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.clients = clients()
        self.harmed = False
        self.broken: set[int] = set()  # turns that may end otherwise than by their answers
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(compaction, "SMALL_AT_ONCE", 2)  # conversations are short
        self.patch.setattr(compaction, "MOST_SMALL", 2)
        self.patch.setattr(compaction, "CHECKPOINTS_AT_ONCE", 2)
        self.patch.setattr(compactor.log, "exception", a_merge_fits)

    @initialize(world=worlds, warm=st.sampled_from([0, 8_000, ROOM]))
    def open(self, world: World, warm: int) -> None:
        self.world, self.warm = world, warm
        self.roomy = world.disk_cap > ROOMY and world.disk.segments.capacity is None
        world.open()
        world.conductor.keeper.tiers.warm_cap = warm

    # -- what clients do ---------------------------------------------------------------------

    @rule(
        who=talks,
        text=words,
        most=st.integers(1, 30),
        store=st.sampled_from([True] * 5 + [False]),
        stop=st.sampled_from([(), (), ("e",), ("an", "\N{EURO SIGN}")]),
        heat=st.sampled_from([0.0, 1.0]),
        codec=st.sampled_from([None] * 5 + [OtherCodec.name, CountingCodec.name]),
    )
    def ask(
        self,
        who: int,
        text: str,
        most: int,
        store: bool,
        stop: tuple[str, ...],
        heat: float,
        codec: str | None = None,
    ) -> None:
        client = self.clients[who]
        if client.said is not None:
            return
        sampling = Sampling(temperature=heat, seed=who)
        ask = client.talk.ask(text, max_tokens=most, store=store, stop=stop, sampling=sampling)
        ask = evolve(ask, codec=codec if ask.identity.exclusive else None)
        try:
            client.said = self.world.begin(ask)
        except PromptTooLong:
            client.talk.history.clear()

    @rule(text=words | st.just(LONG), most=st.integers(1, 300))
    def ask_all_at_once(self, text: str, most: int) -> None:
        for who in range(len(self.clients)):
            self.ask(who, text, most, True, (), 0.0)

    @rule(who=talks, texts=st.lists(words, min_size=1, max_size=6))
    def converse(self, who: int, texts: list[str]) -> None:
        for text in texts:
            self.ask(who, text, 5, True, (), 0.0)
            self.settle()

    @rule(who=talks, later=st.integers(0, 20), last=st.booleans())
    def cancel(self, who: int, later: int, last: bool) -> None:
        self.go_on(later)
        said = self.clients[who].said
        if said is not None:
            self.broken.add(said.number)
            self.world.cancel_last(said) if last else self.world.cancel(said)

    @rule(who=talks, length=st.integers(0, 4), text=words)
    def rewrite(self, who: int, length: int, text: str) -> None:
        """The client changes what was said, from somewhere on."""
        client = self.clients[who]
        if client.said is None:
            del client.talk.history[2 * length :]
            if client.talk.history:
                client.talk.history.pop()
                client.talk.hear(text)

    @rule(who=talks, other=talks)
    def fork(self, who: int, other: int) -> None:
        """The client goes on from what another one said."""
        if self.clients[who].said is None and self.clients[other].said is None:
            self.clients[who].talk.history[:] = self.clients[other].talk.history

    # -- what the world does -----------------------------------------------------------------

    @rule(which=st.integers(0, 20))
    def forget(self, which: int) -> None:
        """Somebody deletes an agent, whatever it is doing."""
        keeper = self.world.conductor.keeper
        keys = sorted((one.key for one in keeper.registry), key=lambda key: key.name)
        if keys:
            keeper.forget(keys[which % len(keys)])
            for client in self.clients:
                client.kept = 0

    @rule(which=st.integers(0, 20))
    def expire(self, which: int) -> None:
        """An agent's time is over, and long enough passes for that to be believed."""
        keeper = self.world.conductor.keeper
        found = sorted(keeper.registry, key=lambda one: one.name)
        if found:
            session = found[which % len(found)]
            keeper.tiers.place(evolve(session, expires=self.world.clock.wall()))
            self.wait(GRACE_SECONDS)
            for client in self.clients:
                client.kept = 0

    @rule(free=st.sampled_from([0, FLOOR + 9_000, ROOM, ROOM, ROOM]))
    def others_write_to_the_disk(self, free: int) -> None:
        self.world.free = free + self.world.disk.nbytes()
        self.harmed = self.harmed or free < ROOM

    @rule(rounds=st.integers(1, 12))
    def go_on(self, rounds: int) -> None:
        for _ in range(rounds):
            if not self.world.step():
                break
        self.hear()

    @rule()
    def let_threads_work(self) -> None:
        self.world.wait()

    @rule()
    def settle(self) -> None:
        self.world.settle()
        self.hear()

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        """Who waits too long for a place is refused."""
        self.world.clock.advance(seconds)
        self.broken |= {one.said.number for one in self.clients if one.said is not None}

    @rule(warm=st.sampled_from([0, 3_000, ROOM]))
    def change_warm_cap(self, warm: int) -> None:
        self.warm = self.world.conductor.keeper.tiers.warm_cap = warm
        self.world.conductor.keeper.tiers.trim()

    @rule(cap=caps)
    def restart(self, cap: int) -> None:
        self.settle()
        self.world.disk_cap = cap
        self.roomy = self.roomy and cap > ROOMY
        self.reopen(self.world.restart)

    @rule()
    def kill(self) -> None:
        for client in self.clients:
            if client.said is not None:
                client.said = None
                client.talk.take_back()
        self.reopen(self.world.kill)

    def reopen(self, how: Callable[[], None]) -> None:
        self.broken.clear()
        how()
        self.world.conductor.keeper.tiers.warm_cap = self.warm
        self.world.settle()
        if self.roomy and not self.harmed and self.world.durable:
            for client in self.clients:
                self.check_found(client)

    # -- what goes wrong ---------------------------------------------------------------------

    @rule(which=st.integers(0, 50), missing=st.booleans())
    def spoil(self, which: int, missing: bool) -> None:
        found, store = self.world.segments(Tier.COLD), self.world.disk.segments
        if found:
            key = found[which % len(found)].key
            store.delete(key) if missing else store.damage(key)
            self.harmed = True

    @rule(
        method=st.sampled_from(["put", "commit", "read", "delete"]),
        problem=st.sampled_from(PROBLEMS),
        times=st.integers(1, 3),
    )
    def harm_disk(self, method: str, problem: Callable[[], Exception], times: int) -> None:
        self.world.disk.fail(method, [problem() for _ in range(times)])
        self.harmed = True

    @rule(method=st.sampled_from(["start", "adopt", "grow", "trim", "submit", "collect", "export"]))
    def harm_engine(self, method: str) -> None:
        self.world.engine.frailty.fail(method, MemoryError())
        self.harmed = True

    @rule()
    def mend(self) -> None:
        self.world.disk.recover()
        self.world.engine.frailty.recover()
        self.settle()

    # -- what must hold ----------------------------------------------------------------------

    def hear(self) -> None:
        for client in self.clients:
            if client.said is not None and client.said.over:
                self.judge(client, client.said)
                client.said = None

    def judge(self, client: Client, said: Said) -> None:
        last = said.events[-1]
        if isinstance(last, Ended) and last.finish in (Finish.STOP, Finish.LENGTH):
            self.world.check_answer(said)
            client.talk.hear(said.text)
            if said.request.store:
                client.kept = len(said.request.prompt)
            return
        client.talk.take_back()
        failed = isinstance(last, Ended) and last.finish is Finish.FAILED
        assert self.harmed if failed else said.number in self.broken

    def check_found(self, client: Client) -> None:
        """What the client was promised is in the home."""
        if client.kept and client.talk.name in ("ada", "bob"):
            session = self.world.session(client.talk.name)
            assert session is not None
            assert session.cursor is not None
            assert session.cursor.row >= client.kept

    @invariant()
    def everything_adds_up(self) -> None:
        self.world.conductor.check_integrity()

    @invariant()
    def rows_are_kept_with_the_codec_of_their_root(self) -> None:
        conductor = self.world.conductor
        known = {root for tenant in ("default", "other") for root in conductor.roots.of(tenant)}
        for key, payload in conductor.keeper.tiers.warm.items():
            root = conductor.keeper.lineage[key].root
            assert root not in known or conductor.roots.codec_name(root) == payload.codec

    def teardown(self) -> None:
        self.world.disk.recover()
        self.world.engine.frailty.recover()
        self.settle()
        self.world.check_drained()
        self.world.close()
        self.patch.undo()


TestEverything = Everything.TestCase
