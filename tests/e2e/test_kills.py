"""A server that is killed again and again while several agents are talking to it."""

import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from threading import Lock

import httpx
import pytest
from attrs import define, field

from tests.agents import Agent, CutOff, recomputed
from tests.homes import Remains
from tests.servers import Server, served

ROUNDS = int(os.environ.get("AGENTCACHE_TEST_KILLS", "10"))
SEED = int(os.environ.get("AGENTCACHE_TEST_SEED", "20"))
AGENTS = ("ann", "bob", "cleo")
EVENTS = 60  # of all agents' streams, among which the one to kill at is drawn
TOKENS = 6
MOST_AGAIN = 8  # tokens: of the last answer, some may not have become text; a lost turn is 40


@define
class Countdown:
    """Calls `at_zero`, once, at the `left`-th event that any thread tells."""

    left: int
    at_zero: Callable[[], None]
    _lock: Lock = field(factory=Lock)

    def event(self) -> None:
        with self._lock:
            self.left -= 1
            if not self.left:
                self.at_zero()


def _talk(server: Server, countdown: Countdown, agent: Agent) -> None:
    """Ask one question after another until the server is gone."""
    for number in count(len(agent.answers)):
        try:
            with agent.asking(server, f"Question {number}?", TOKENS) as stream:
                for _ in stream:
                    countdown.event()
            countdown.event()
        except (CutOff, httpx.TransportError):
            return


@pytest.mark.timeout(120 + 60 * ROUNDS)
def test_every_acknowledged_turn_outlives_kills_at_any_moment(tmp_path: Path, model: Path) -> None:
    home, chance = tmp_path / "home", random.Random(SEED)
    agents = [Agent.with_notes(name) for name in AGENTS]
    with served(home, model) as server:
        for agent in agents:
            agent.ask(server, "Who are you?", TOKENS)
        server.kill()
    for number in range(ROUNDS):
        at = chance.randint(1, EVENTS)
        with served(home, model) as server:
            for agent in agents:
                again = recomputed(server, agent, f"What is left after kill {number}?")
                assert again <= MOST_AGAIN, f"seed {SEED}, kill {number}: {agent.name} lost a turn"
            talk = partial(_talk, server, Countdown(at, server.kill))
            with ThreadPoolExecutor(len(agents)) as pool:
                list(pool.map(talk, agents))
            assert not server.is_running
    with served(home, model) as server:
        assert all(recomputed(server, agent) <= MOST_AGAIN for agent in agents)
        assert server.stop() == 0
    Remains.of(home).check()
