"""What clients were told: statuses, times, and what the cache did for them."""

from collections import Counter
from collections.abc import Iterable
from statistics import quantiles

from attrs import define, field, frozen

OK, REFUSED, UNAVAILABLE = 200, 429, 503
CUT_OFF = 0  # instead of a status: the connection broke before the answer was complete
LEFT = -1  # the client went away itself


@frozen
class Outcome:
    """One request. Times are in seconds; `first` is the time to the first piece of a stream.

    `expected` is how many tokens the client had been told before, in prompt and answer of its last
    complete turn: what the cache should know. `problem` is the code of an error, in whatever form.
    """

    status: int
    seconds: float
    first: float | None = None
    prompt: int = 0
    completion: int = 0
    cached: int = 0
    expected: int = 0
    tier: str = ""
    problem: str = ""
    retry_after: str | None = None
    retry_after_ms: str | None = None
    text: str = ""

    @property
    def is_answer(self) -> bool:
        """Whether a complete answer came."""
        return self.status == OK and not self.problem

    @property
    def waits(self) -> float:
        """For how many seconds the server said to wait."""
        assert self.retry_after_ms is not None, f"{self} does not say when to come back"
        return int(self.retry_after_ms) / 1000


@define
class Tally:
    """All outcomes of a load, in the order of their ends."""

    outcomes: list[Outcome] = field(factory=list)

    def add(self, outcome: Outcome) -> None:
        """One more."""
        self.outcomes.append(outcome)

    @property
    def answers(self) -> list[Outcome]:
        """Those that are complete."""
        return [one for one in self.outcomes if one.is_answer]

    @property
    def statuses(self) -> "Counter[int]":
        """How often each status came."""
        return Counter(one.status for one in self.outcomes)

    def check(self, *statuses: int) -> None:
        """Fail unless every outcome has one of `statuses`, is whole, and, refused, says when."""
        for one in self.outcomes:
            assert one.status in statuses, one
            assert one.status not in (OK, LEFT) or not one.problem, one
            if one.status in (REFUSED, UNAVAILABLE):
                check_told_when(one)

    def hit_rate(self) -> float:
        """Of the tokens that returning clients had been told before, the share that was cached."""
        back = [one for one in self.answers if one.expected]
        return sum(min(one.cached, one.expected) for one in back) / sum(
            one.expected for one in back
        )

    def summary(self) -> str:
        """In one line, for whoever reads the report."""
        statuses = ", ".join(f"{one}: {times}" for one, times in sorted(self.statuses.items()))
        whole = percentiles(one.seconds for one in self.answers)
        first = percentiles(one.first for one in self.answers if one.first is not None)
        tiers = ", ".join(
            f"{tier} {times}" for tier, times in Counter(o.tier for o in self.answers).items()
        )
        return f"statuses {{{statuses}}}; turn {whole}; first token {first}; tiers {{{tiers}}}"


def check_told_when(one: Outcome) -> None:
    """Both headers are there, agree, and name a time that is worth waiting."""
    assert one.retry_after is not None, one
    assert int(one.retry_after) >= 1, one
    assert 0 < one.waits <= int(one.retry_after), one


def percentile(values: Iterable[float], which: int) -> float:
    """The percentile `which` of `values`; 0 without values."""
    found = list(values)
    if len(found) < 2:
        return sum(found)
    return quantiles(found, n=100, method="inclusive")[which - 1]


def percentiles(values: Iterable[float]) -> str:
    """Median, p95 and p99 in milliseconds."""
    found = list(values)
    told = "/".join(f"{1000 * percentile(found, which):.0f}" for which in (50, 95, 99))
    return f"p50/95/99 {told} ms"
