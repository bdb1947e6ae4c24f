"""Anything that may happen, and agents forked, rewound, pinned, expiring; and models swapped."""

from hypothesis import strategies as st
from hypothesis.stateful import rule

from agentcache.adapters.memory.hash_model import hash_spec
from agentcache.domain.conversation import Message
from agentcache.domain.errors import AgentBusy, AgentExists, UnknownAgent
from agentcache.domain.request import Tier
from agentcache.domain.session import Session
from agentcache.domain.spec import CacheSpec
from agentcache.domain.turn import TurnState
from tests.stress.operating import change, drain, swap
from tests.stress.test_everything import Client, Everything, words
from tests.talks import Talk

MODELS = (b"other", b"memory")
OTHER = hash_spec(3)
named = st.sampled_from(["ada", "bob", "fork"])


class Operations(Everything):
    """The agents with names, one of which is a fork where there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.clients.append(Client(Talk("fork")))
        self.specs: dict[bytes, CacheSpec] = {}

    @property
    def agents(self) -> dict[str, Client]:
        """Those with a name of their own."""
        return {str(one.talk.name): one for one in self.clients if _is_named(one)}

    @rule(name=named, new=named)
    def fork_agent(self, name: str, new: str) -> None:
        old, young = self.agents[name], self.agents[new]
        try:
            change(self.world, lambda agents: agents.fork("default", name, new))
        except (AgentExists, UnknownAgent):
            return
        finally:
            self.hear()
        assert young.said is None
        young.talk.system = old.talk.system
        young.talk.history[:] = self.told(new)
        young.kept = old.kept if old.said is None else 0

    @rule(name=named, turns=st.integers(1, 3))
    def rewind(self, name: str, turns: int) -> None:
        client = self.agents[name]
        before = self.told(name)
        if turns > len(before) // 2 or any(one.role not in "user assistant" for one in before):
            return
        try:
            change(self.world, lambda agents: agents.rewind("default", name, turns))
        except (AgentBusy, UnknownAgent):
            return
        finally:
            self.hear()
        if self.session(name) is None:  # it has expired
            return
        left = self.told(name)
        assert left == before[: -2 * turns]
        client.talk.history[:] = left
        client.kept = 0

    @rule(name=named, pinned=st.booleans())
    def pin(self, name: str, pinned: bool) -> None:
        try:
            change(self.world, lambda agents: agents.pin("default", name, pinned))
        except UnknownAgent:
            return
        finally:
            self.hear()
        session = self.session(name)
        assert session is None or session.pinned is pinned

    @rule(name=named, seconds=st.none() | st.floats(0, 100))
    def expire(self, name: str, seconds: float | None) -> None:
        at = None if seconds is None else self.world.clock.wall() + seconds
        try:
            change(self.world, lambda agents: agents.expire("default", name, at))
        except UnknownAgent:
            return
        finally:
            self.hear()
        self.agents[name].kept = 0

    @rule(name=named)
    def forget_agent(self, name: str) -> None:
        try:
            change(self.world, lambda agents: agents.forget("default", name))
        except (AgentBusy, UnknownAgent):
            return
        finally:
            self.hear()
        assert self.session(name) is None
        self.agents[name].kept = 0

    @rule(name=named, text=words)
    def cancel_when_restored(self, name: str, text: str) -> None:
        """The client goes away at the very moment when its turn has come to its place."""
        self.settle()
        self.world.conductor.planner.hot.drop_resting()
        who = next(number for number, one in enumerate(self.clients) if one is self.agents[name])
        self.ask(who, text, 9, True, (), 0.0)
        said = self.clients[who].said
        if said is not None:
            self.broken.add(said.number)
            turns = self.world.conductor.planner.turns
            for _ in range(3):
                if said.number in turns and turns[said.number].state is TurnState.QUEUED:
                    self.world.step()
            self.world.wait()
            self.world.cancel_last(said)
            self.settle()

    @rule(model=st.sampled_from(MODELS))
    def swap_model(self, model: bytes) -> None:
        """Their layers differ: what one computed, and the other took for its own, would be seen."""
        self.broken |= {one.said.number for one in self.clients if one.said is not None}
        self.specs.setdefault(self.world.digest, self.world.spec)
        drain(self.world)
        self.hear()
        swap(self.world, model, self.specs.get(model, OTHER))
        self.broken.clear()  # turns are numbered anew
        for client in self.clients:
            client.kept = 0

    def teardown(self) -> None:
        """Who is pinned may keep more in the home than its cap allows; when nobody is, it holds."""
        if hasattr(self, "world"):
            assert self.harmed or not self.world.telemetry.problems
            self.world.disk.recover()
            self.world.engine.frailty.recover()
            for model in MODELS:
                self.swap_model(model)
                self.check_warm()
                for name in self.agents:
                    self.pin(name, False)
        super().teardown()

    def check_warm(self) -> None:
        """RAM is within its cap, but for what somebody pinned and the home could not take."""
        keeper = self.world.conductor.keeper
        pinned = {key for path in keeper.tiers.pins.paths.values() for key in path}
        stay = [
            one.nbytes
            for one in self.world.segments(Tier.WARM)
            if one.key in pinned and not keeper.lineage.resides(one.key, Tier.COLD)
        ]
        assert keeper.lineage.nbytes(Tier.WARM) <= keeper.tiers.warm_cap + sum(stay)

    def session(self, name: str) -> Session | None:
        return self.world.session(name)

    def check_found(self, client: Client) -> None:
        if client.kept and _is_named(client):
            session = self.session(str(client.talk.name))
            assert session is not None
            assert session.cursor is not None
            assert session.cursor.row >= client.kept

    def told(self, name: str) -> list[Message]:
        """What was said, as the agent remembers it."""
        session = self.session(name)
        said = session.messages if session is not None else ()
        return [one for one in said if one.role != "system"]


def _is_named(client: Client) -> bool:
    return client.talk.name is not None and client.talk.exclusive


TestOperations = Operations.TestCase
