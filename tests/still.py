"""The store and reader threads taken apart, for tests that choose what they do and when they tell.

Rows are the tokens themselves, so what a segment holds can be seen to be right.
"""

from collections.abc import Callable, Mapping

from attrs import define, field, frozen

from agentcache.domain.path import Match, Step
from agentcache.domain.segment import Segment
from agentcache.domain.spec import CacheSpec
from agentcache.domain.tokens import Tokens
from agentcache.fetcher import Fetcher
from agentcache.ports.payload import Payload, Tensor
from agentcache.writer import Job, Writer


class TokenCodec:
    """Encodes tokens as themselves."""

    name = "native"

    def encode(self, _spec: CacheSpec, rows: "Tokens[int]") -> Payload:
        return payload_of(bytes(list(rows)))

    def join(self, _spec: CacheSpec, parts: list[tuple[Payload, int]]) -> Payload:
        return payload_of(b"".join(bytes(one.tensors["t"].data[:rows]) for one, rows in parts))


def payload_of(data: bytes) -> Payload:
    tensor = Tensor("U8", (len(data),), memoryview(data))
    return Payload("native", len(data), {"t": tensor})


@define(eq=False)
class StillWriter(Writer):
    """The store thread, a job at a time."""

    def submit(self, job: Job) -> None:
        (self._idle_jobs if job.idle else self._jobs).append(job)

    def work(self) -> None:
        if self._jobs or self._idle_jobs:
            job = (self._jobs or self._idle_jobs).popleft()
            job.done(self._attempt(job))


@define(eq=False)
class StillFetcher(Fetcher):
    """The reader threads, a join at a time."""

    joins: list[Callable[[], None]] = field(factory=list, init=False)

    def join(  # type: ignore[override]
        self,
        codec: TokenCodec,
        parts: tuple[Step, ...],
        warm: Mapping[bytes, Payload],
        done: Callable[[Payload | Exception], None],
    ) -> None:
        found = [(step, warm.get(step.segment.key)) for step in parts]

        def work() -> None:
            try:
                made: Payload | Exception = self._joined(codec, found)  # type: ignore[arg-type]
            except Exception as error:
                made = error
            done(made)

        self.joins.append(work)


@frozen(eq=False)
class Rows:
    """A live sequence: all its rows can be exported."""

    ids: "Tokens[int]"

    def export(self, _sequence: int, start: int, stop: int) -> "Tokens[int]":
        return self.ids[start:stop]


@define(eq=False)
class Fetch:
    """Rows on their way to a turn, and what of them was in RAM when it began."""

    path: Match
    warm: dict[bytes, Payload]


@define
class Told:
    """What an agent was promised to find, and what it may find as well."""

    sure: "Tokens[int] | None" = None
    perhaps: list["Tokens[int] | None"] = field(factory=list)


def check_rows(segment: Segment, payload: Payload) -> None:
    """Fail unless these are the rows of the segment."""
    assert bytes(payload.tensors["t"].data) == bytes(list(segment.ids)), segment
