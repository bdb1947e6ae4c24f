"""Who waits for a place: in turn across tenants, by rank in one, one after another for an agent.

A turn's rank is when it arrived, sooner by AGEING_SECONDS for each step of its priority. So it is
overtaken only by turns that arrive within that time for each step that they have more: the longer
it waits, the fewer can go before it, and nobody starves.
"""

import heapq
from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

from attrs import define, field

from agentcache.domain.errors import IntegrityError
from agentcache.domain.request import Identity
from agentcache.domain.turn import Turn, TurnState

AGEING_SECONDS = 30.0


@define(eq=False)
class TurnQueue:
    """Waiting turns of every tenant. The tenant that was served last is asked last.

    Who had a place before (`returned`) waits in front of all others of its tenant.
    """

    _tenants: "OrderedDict[str, list[Turn]]" = field(factory=OrderedDict, init=False)
    _deadlines: list[tuple[float, int, Turn]] = field(factory=list, init=False)
    _size: int = field(default=0, init=False)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Turn]:
        return (turn for waiting in self._tenants.values() for turn in waiting)

    def push(self, turn: Turn) -> None:
        """Let `turn` wait."""
        insort(self._tenants.setdefault(turn.request.identity.tenant, []), turn, key=_order)
        self._size += 1
        if not turn.admitted:
            heapq.heappush(self._deadlines, (turn.request.deadline, turn.number, turn))

    def first(self, may_start: Callable[[Turn], bool]) -> Turn | None:
        """The turn that is next, passing over those that may not start yet."""
        return next((turn for turn in self if may_start(turn)), None)

    def take(self, turn: Turn) -> None:
        """`turn` got its place: its tenant is asked last from now on."""
        self.remove(turn)
        tenant = turn.request.identity.tenant
        if tenant in self._tenants:
            self._tenants.move_to_end(tenant)

    def remove(self, turn: Turn) -> None:
        """`turn` waits no longer."""
        tenant = turn.request.identity.tenant
        self._tenants[tenant].remove(turn)
        self._size -= 1
        if not self._tenants[tenant]:
            del self._tenants[tenant]

    def next_deadline(self) -> float | None:
        """The first deadline of those that wait for their first place; None when none does."""
        while self._deadlines:
            deadline, _, turn = self._deadlines[0]
            if turn.state is TurnState.QUEUED and not turn.admitted:
                return deadline
            heapq.heappop(self._deadlines)
        return None

    def may_be_late(self, now: float) -> bool:
        """Whether a deadline has come, perhaps of one who waits no longer."""
        return bool(self._deadlines) and self._deadlines[0][0] <= now

    def take_late(self, now: float) -> list[Turn]:
        """Those whose deadline has come wait no longer."""
        late = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            turn = heapq.heappop(self._deadlines)[2]
            if turn not in late:  # it may have waited, had a place, and waited again
                self.remove(turn)
                late.append(turn)
        return late

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every turn waits once, with its own tenant, in order."""
        turns = list(self)
        if len(turns) != self._size or len({turn.number for turn in turns}) != self._size:
            raise IntegrityError("a turn waits twice, or is counted wrongly")
        for tenant, waiting in self._tenants.items():
            if not waiting or any(turn.request.identity.tenant != tenant for turn in waiting):
                raise IntegrityError(f"the queue of {tenant!r} is empty or not its own")
            if waiting != sorted(waiting, key=_order):
                raise IntegrityError(f"the queue of {tenant!r} is out of order")
        if any(turn.state is not TurnState.QUEUED for turn in turns):
            raise IntegrityError("a turn waits that is not queued")


def _order(turn: Turn) -> tuple[bool, float, int]:
    rank = turn.arrived - AGEING_SECONDS * turn.request.priority
    return not turn.returned, rank, turn.number


@define(eq=False)
class AgentOrder:
    """The turns of exclusive agents that are not over, each agent's in the order they arrived."""

    _agents: "dict[Identity, deque[Turn]]" = field(factory=dict, init=False)

    def __contains__(self, identity: Identity) -> bool:
        return identity in self._agents

    def add(self, turn: Turn) -> None:
        """`turn` is its agent's last."""
        if turn.request.identity.exclusive:
            self._agents.setdefault(turn.request.identity, deque()).append(turn)

    def remove(self, turn: Turn) -> None:
        """`turn` is over."""
        identity = turn.request.identity
        if identity.exclusive:
            self._agents[identity].remove(turn)
            if not self._agents[identity]:
                del self._agents[identity]

    def is_first(self, turn: Turn) -> bool:
        """Whether no other turn of the same agent comes before it."""
        identity = turn.request.identity
        return not identity.exclusive or self._agents[identity][0] is turn

    def check_integrity(self, turns: dict[int, Turn]) -> None:
        """Raise IntegrityError unless these are the exclusive ones of `turns`."""
        listed = [turn for waiting in self._agents.values() for turn in waiting]
        known = [turn for turn in turns.values() if turn.request.identity.exclusive]
        if sorted(map(id, listed)) != sorted(map(id, known)) or not all(self._agents.values()):
            raise IntegrityError("the turns of agents are not those that are not over")
