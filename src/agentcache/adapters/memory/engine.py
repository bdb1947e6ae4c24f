"""An engine without a model: instant, deterministic, and unforgiving about its cache.

What it computes is in `hash_model`: one wrong row anywhere, or one too many or too few, shows as a
wrong answer.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count

import numpy as np
from attrs import define, evolve, field, frozen

from agentcache.adapters.memory.hash_cache import HashCache
from agentcache.adapters.memory.hash_model import HashModel, hash_spec
from agentcache.domain.errors import IntegrityError
from agentcache.domain.guide import DeadEnd
from agentcache.domain.logprobs import Logprobs
from agentcache.domain.plan import (
    Again,
    PrefillChunk,
    Retold,
    Sampled,
    SequenceFailed,
    StepPlan,
    StepResult,
)
from agentcache.domain.request import Sampling
from agentcache.domain.spec import CacheSpec
from agentcache.domain.trace import TRACED, Top
from agentcache.ports.engine import ModelCard
from agentcache.ports.rows import Rows

_UNLIKELY = -20.0
_GREEDY = Sampling(temperature=0)
Failing = Callable[[int, int], str | None]


@frozen(eq=False)
class Pending:
    """An outcome that is kept until it is collected; dropped if its sequence is reset before."""

    cache: HashCache
    epoch: int
    outcome: Sampled | SequenceFailed | None
    retold: Retold | None = None


@define(eq=False)
class MemoryEngine:
    """Implements `ports.engine.Engine`.

    `capacity_bytes` bounds what all sequences hold: `start` and `grow` raise MemoryError beyond it.
    `fails(sequence, step)` makes a sequence fail in a step: it returns the problem, or None.
    """

    card: ModelCard
    _model: HashModel
    _capacity_bytes: int | None = None
    _fails: Failing = field(default=lambda _sequence, _step: None)
    _live: dict[int, HashCache] = field(factory=dict, init=False)
    _forwarded: int = field(default=0, init=False)
    _steps: deque[tuple[int, list[Pending], int]] = field(factory=deque, init=False)

    @classmethod
    def of(
        cls,
        *,
        name: str = "memory",
        digest: bytes = b"memory",
        spec: CacheSpec | None = None,
        context: int = 8192,
        vocabulary: int = 1000,
        ends: frozenset[int] = frozenset({2}),
        end_rate: float = 0.0,
        in_flight: int = 1,
        capacity_bytes: int | None = None,
        fails: Failing = lambda _sequence, _step: None,
    ) -> "MemoryEngine":
        """An engine whose answers follow from `hash_spec()` or another `spec` made by it."""
        spec = spec or hash_spec()
        card = ModelCard(name, digest, spec, context, vocabulary, ends, in_flight=in_flight)
        return cls(card, HashModel(spec, vocabulary, ends, end_rate), capacity_bytes, fails)

    def start(self, sequence: int, capacity: int, restore: int = 0) -> Rows:
        """See `Engine.start`."""
        if sequence in self._live:
            raise IntegrityError(f"sequence {sequence} has been started already")
        self._check_budget(capacity, 0)
        cache = self._live[sequence] = HashCache(self.card.spec, capacity)
        return cache.rows(0, restore, restore)

    def adopt(self, sequence: int, length: int) -> None:
        """See `Engine.adopt`."""
        self._one(sequence).adopt(length)

    def grow(self, sequence: int, capacity: int) -> None:
        """See `Engine.grow`."""
        cache = self._one(sequence)
        if capacity > cache.capacity:
            self._check_budget(capacity, cache.nbytes)
            cache.grow(capacity)

    def submit(self, plan: StepPlan) -> None:
        """See `Engine.submit`; the step is done when this returns."""
        if len(self._steps) >= self.card.in_flight:
            raise IntegrityError(f"step {plan.number} is submitted before a step is collected")
        before = self._forwarded
        done = [self._prefill(plan.number, chunk) for chunk in plan.prefill]
        done += [self._decode(plan.number, sequence) for sequence in plan.decode]
        self._steps.append((plan.number, done, self._forwarded - before))

    def collect(self) -> StepResult:
        """See `Engine.collect`."""
        if not self._steps:
            raise IntegrityError("no step has been submitted")
        number, done, forwarded = self._steps.popleft()
        current = [one for one in done if one.cache.epoch == one.epoch]
        outcomes = [one.outcome for one in current]
        sampled = tuple(one for one in outcomes if isinstance(one, Sampled))
        failed = tuple(one for one in outcomes if isinstance(one, SequenceFailed))
        retold = tuple(one.retold for one in current if one.retold is not None)
        return StepResult(number, sampled, failed, forwarded, retold)

    def export(self, sequence: int, start: int, stop: int) -> Rows:
        """See `Engine.export`."""
        cache = self._one(sequence)
        if not 0 <= start <= stop <= cache.length:
            raise IntegrityError(f"[{start}, {stop}) of {cache.length} rows cannot be exported")
        return cache.rows(start, stop, cache.length)

    def likeliest(self, sequence: int, stop: int) -> tuple[Top, ...]:
        """See `Engine.likeliest`."""
        cache = self._one(sequence)
        told, cache.told = cache.told if cache.traced else set(), set()
        first = stop
        while first > max(0, stop - TRACED) and first - 1 in told:
            first -= 1
        return tuple(self._model.likeliest(cache.head(at + 1)) for at in range(first, stop))

    def trim(self, sequence: int, length: int) -> None:
        """See `Engine.trim`."""
        cache = self._one(sequence)
        if length not in self._trimmable(cache):
            raise IntegrityError(f"{cache.length} rows cannot be trimmed to {length}")
        cache.reset(length)

    def drop(self, sequence: int) -> None:
        """See `Engine.drop`."""
        cache = self._live.pop(sequence, None)
        if cache is not None:
            cache.reset(0)

    def rest(self) -> bool:
        """See `Engine.rest`: nothing could be faster."""
        return False

    def held_bytes(self) -> int:
        """See `Engine.held_bytes`."""
        return sum(cache.nbytes for cache in self._live.values())

    def close(self) -> None:
        """See `Engine.close`."""
        self._steps.clear()
        self._live.clear()

    def expected_tokens(
        self, ids: Sequence[int], count: int, sampling: Sampling | None = None
    ) -> list[int]:
        """The `count` tokens that follow `ids`, each worked out from nothing (default: greedy)."""
        known = list(ids)
        for _ in range(count):
            cache = HashCache(self.card.spec, len(known))
            cache.append(self._model.rows(cache.everything(), known))
            known.append(self._model.token(cache.everything(), sampling or _GREEDY))
        return known[len(ids) :]

    def _prefill(self, step: int, chunk: PrefillChunk) -> Pending:
        cache = self._one(chunk.sequence)
        if cache.problem is None and chunk.start != cache.length:
            raise IntegrityError(f"{chunk.start} does not follow {cache.length} rows")
        retold = self._again(chunk, cache) if chunk.again and not cache.problem else None
        cache.sampling, cache.traced = chunk.sampling, chunk.traced
        cache.guide = chunk.guide and chunk.guide.fresh()
        for token in chunk.said:
            self._follow(cache, token)
        pending = self._run(step, chunk.sequence, cache, chunk.ids)
        return evolve(pending, retold=None if cache.problem else retold)

    def _again(self, chunk: PrefillChunk, cache: HashCache) -> Retold:
        again = chunk.again or Again(chunk.ids[:0])
        first = cache.length - len(again.ids)
        if not self.card.spec.interior_restorable or not 0 <= first < cache.length:
            raise IntegrityError(f"the rows from {first} of {cache.length} cannot be run again")
        self._forwarded += len(again.ids)
        positions = zip(count(first), again.ids, again.asked, strict=False)
        return Retold(chunk.sequence, tuple(self._found(cache, *one) for one in positions))

    def _found(
        self, cache: HashCache, at: int, token: int, asked: Sequence[int]
    ) -> tuple[float, ...]:
        """What `token` at `at` says, if its row is what it is computed to be."""
        row = self._model.rows(cache.head(at), [token])
        held = cache.rows(at, at + 1, cache.length)
        same = all(np.array_equal(held.full[role], array) for role, array in row.full.items())
        likely = dict(self._model.likeliest(cache.head(at + 1))) if same else {}
        return tuple(likely.get(one, _UNLIKELY) for one in asked)

    def _decode(self, step: int, sequence: int) -> Pending:
        cache = self._one(sequence)
        if cache.problem is None and cache.token is None:
            raise IntegrityError(f"nothing was sampled for sequence {sequence}")
        return self._run(step, sequence, cache, [cache.token or 0])

    def _run(self, step: int, sequence: int, cache: HashCache, ids: Sequence[int]) -> Pending:
        cache.problem = cache.problem or self._fails(sequence, step)
        allowed = self._allowed(cache)
        if cache.problem is not None:
            failed = SequenceFailed(sequence, cache.problem, cache.stuck)
            return Pending(cache, cache.epoch, failed)
        if cache.length + len(ids) > cache.capacity:
            raise IntegrityError(f"sequence {sequence} has no room for {len(ids)} more tokens")
        self._forwarded += len(ids)
        cache.append(self._model.rows(cache.everything(), ids))
        if cache.sampling is None:
            return Pending(cache, cache.epoch, None)
        cache.token = self._model.token(cache.everything(), cache.sampling, allowed)
        told = None if cache.sampling.logprobs is None else Logprobs(0.0, ((cache.token, 0.0),))
        cache.told.add(cache.length - 1)
        self._follow(cache, cache.token)
        return Pending(cache, cache.epoch, Sampled(sequence, cache.token, told))

    def _allowed(self, cache: HashCache) -> bytes | None:
        if cache.guide is None or cache.problem is not None:
            return None
        try:
            return cache.guide.allowed()
        except DeadEnd as error:
            cache.problem, cache.stuck = str(error), True
            return None

    def _follow(self, cache: HashCache, token: int) -> None:
        if cache.guide is not None and token not in self.card.ends:
            with suppress(DeadEnd):  # `allowed` will say so again
                cache.guide.accept(token)

    def _trimmable(self, cache: HashCache) -> Sequence[int]:
        if self.card.spec.interior_restorable:
            return range(cache.length + 1)
        return (0, cache.length)

    def _check_budget(self, capacity: int, instead_of: int) -> None:
        if self._capacity_bytes is None:
            return
        spec = self.card.spec
        own = capacity * (spec.row_bytes + spec.window_row_bytes) + spec.state_bytes
        wanted = self.held_bytes() - instead_of + own
        if wanted > self._capacity_bytes:
            raise MemoryError(f"{wanted} bytes of KV do not fit in {self._capacity_bytes}")

    def _one(self, sequence: int) -> HashCache:
        if sequence not in self._live:
            raise IntegrityError(f"there is no sequence {sequence}")
        return self._live[sequence]
