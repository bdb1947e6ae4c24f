"""The port to a loaded model: live caches, forward passes, sampling."""

from typing import Protocol

from attrs import frozen

from agentcache.domain.plan import StepPlan, StepResult
from agentcache.domain.spec import CacheSpec
from agentcache.domain.trace import Top
from agentcache.ports.rows import Rows


@frozen
class ModelCard:
    """What the core needs to know of a loaded model.

    `digest` covers everything that changes KV values; `epoch` is raised when the adapter's own
    arithmetic does. `context` is the longest sequence in tokens, `ends` are the ids that end a
    turn, `in_flight` is how many steps may be submitted before one is collected. `notes` say where
    its caches are kept or run less well than they could be.
    """

    name: str
    digest: bytes
    spec: CacheSpec
    context: int
    vocabulary: int
    ends: frozenset[int]
    epoch: int = 1
    in_flight: int = 1
    notes: tuple[str, ...] = ()


class RowSource(Protocol):
    """Where the rows of live sequences can be taken from."""

    def export(self, sequence: int, start: int, stop: int) -> Rows:
        """The rows [start, stop) as they are: views, good until the sequence is next touched."""
        ...


class Engine(RowSource, Protocol):
    """One model and its live sequences, each known by a number that the planner gives.

    All methods are called from one thread, which must be the one that made the engine, except that
    the arrays that `start` returns may be filled by other threads until `adopt`. What cannot be
    (no such sequence, no room for a token, rows that are not there) raises IntegrityError.
    """

    @property
    def card(self) -> ModelCard:
        """What model this is."""
        ...

    def start(self, sequence: int, capacity: int, restore: int = 0) -> Rows:
        """Make an empty sequence with room for `capacity` tokens.

        Returns writable rows [0, restore): whoever restores decodes into them, then `adopt` makes
        them the sequence's. Raises MemoryError when there is no room.
        """
        ...

    def adopt(self, sequence: int, length: int) -> None:
        """The first `length` rows that `start` returned are filled: continue after them."""
        ...

    def grow(self, sequence: int, capacity: int) -> None:
        """Make room for `capacity` tokens in all, keeping every row."""
        ...

    def submit(self, plan: StepPlan) -> None:
        """Start a step. At most `card.in_flight` steps are uncollected at a time.

        A sequence may be in the next step before this one is collected, and may be trimmed or
        dropped: then this step's result leaves it out.
        """
        ...

    def collect(self) -> StepResult:
        """Wait for the oldest submitted step; what was sampled is in the order of its plan.

        A sequence's failure is in the result, not raised.

        A sequence that failed stays, with its rows, and fails again until it is trimmed or dropped.
        """
        ...

    def likeliest(self, sequence: int, stop: int) -> tuple[Top, ...]:
        """The TOP likeliest tokens after each of the positions before `stop`, the last TRACED ones.

        As they were when a `traced` sequence ran these; fewer, or none, where that was not computed
        (inside a prefill chunk) or is forgotten, as it is after this call.
        """
        ...

    def trim(self, sequence: int, length: int) -> None:
        """Forget all rows from `length` on, and what was sampled.

        `length` is any up to the present one where `spec.interior_restorable`, else 0 or that.
        """
        ...

    def drop(self, sequence: int) -> None:
        """Forget the sequence and give its memory back; no error when there is none."""
        ...

    def rest(self) -> bool:
        """Nothing runs: for some milliseconds, do what makes later calls faster.

        Returns whether there is more of it to do. What it takes stays within what live sequences
        may take, and gives way to them.
        """
        ...

    def held_bytes(self) -> int:
        """Bytes of KV memory that all live sequences hold, slack included."""
        ...

    def close(self) -> None:
        """Drop the model and every sequence, and return their memory."""
        ...
