"""The queue of turns that wait for a place: in turn across tenants, in order within one."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

from attrs import define, field

from agentcache.domain.errors import IntegrityError
from agentcache.domain.turn import Turn, TurnState


@define(eq=False)
class TurnQueue:
    """Waiting turns of every tenant. The tenant that was served last is asked last."""

    _tenants: "OrderedDict[str, deque[Turn]]" = field(factory=OrderedDict, init=False)
    _size: int = field(default=0, init=False)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Turn]:
        return (turn for waiting in self._tenants.values() for turn in waiting)

    def push(self, turn: Turn) -> None:
        """Let `turn` wait behind the others of its tenant."""
        self._of(turn).append(turn)
        self._size += 1

    def push_front(self, turn: Turn) -> None:
        """Let `turn` wait before the others of its tenant: it had its place already."""
        self._of(turn).appendleft(turn)
        self._size += 1

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

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every turn waits once, with its own tenant."""
        turns = list(self)
        if len(turns) != self._size or len({turn.number for turn in turns}) != self._size:
            raise IntegrityError("a turn waits twice, or is counted wrongly")
        for tenant, waiting in self._tenants.items():
            if not waiting or any(turn.request.identity.tenant != tenant for turn in waiting):
                raise IntegrityError(f"the queue of {tenant!r} is empty or not its own")
        if any(turn.state is not TurnState.QUEUED for turn in turns):
            raise IntegrityError("a turn waits that is not queued")

    def _of(self, turn: Turn) -> "deque[Turn]":
        return self._tenants.setdefault(turn.request.identity.tenant, deque())
