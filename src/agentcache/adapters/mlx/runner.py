"""Runs single forwards: a chunk of one sequence, or one token each of a batch.

Results are lazy where MLX is, so the next step can be started before this one's tokens are known.
"""

from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np
from attrs import define, field, frozen

from agentcache.adapters.mlx.cache_adapter import MLXCacheAdapter
from agentcache.adapters.mlx.forward import Forward
from agentcache.adapters.mlx.live import LiveCache
from agentcache.adapters.mlx.sampling import Choice, Draw, choose
from agentcache.domain.plan import Sampled, SequenceFailed
from agentcache.domain.request import Sampling

Outcome = Sampled | SequenceFailed


@define(eq=False)
class LiveSequence:
    """One sequence: its caches, how it is sampled, the last sampled token, which may be lazy.

    `epoch` changes when the caller resets it, so that results under way are left out. A sequence
    with a `problem` has failed and runs no more.
    """

    number: int
    cache: LiveCache
    draw: Draw | None = None
    token: np.int64 | mx.array | None = None
    problem: str | None = None
    epoch: int = 0

    def reset(self, length: int) -> None:
        """Forget the rows from `length` on, and all that came of them."""
        self.cache.rewind(length)
        self.draw = self.token = self.problem = None
        self.epoch += 1

    def fail(self, length: int, problem: str) -> None:
        """Go no further, with `length` rows."""
        self.cache.rewind(length)
        self.problem = problem


@frozen(eq=False)
class Running:
    """A forward under way: its sequences, how long each was before it, and the choice of tokens.

    Without a choice nothing is sampled, or everything failed.
    """

    members: tuple[LiveSequence, ...]
    before: tuple[int, ...]
    choice: Choice | None = None
    epochs: tuple[int, ...] = field(init=False)

    @epochs.default
    def _current(self) -> tuple[int, ...]:
        return tuple(member.epoch for member in self.members)

    def outcomes(self) -> Iterator[Outcome]:
        """Wait for the tokens. Sequences that were reset since are left out."""
        tokens = self._tokens()
        for member, epoch, token in zip(self.members, self.epochs, tokens, strict=True):
            if member.epoch != epoch:
                continue
            if member.problem is not None:
                yield SequenceFailed(member.number, member.problem)
            elif token is not None:
                yield Sampled(member.number, token)

    def _tokens(self) -> Sequence[int | None]:
        """The sampled tokens; members whose logits came out unusable have failed."""
        if self.choice is None:
            return [None] * len(self.members)
        try:
            usable, tokens = np.asarray(self.choice.usable), np.asarray(self.choice.tokens)
        except Exception as error:  # the device's: lazy work cannot be retried alone
            self.fail(_described(error))
            return [None] * len(self.members)
        for member, before, good in zip(self.members, self.before, usable, strict=True):
            if not good and member.problem is None:
                member.fail(before, "its logits are not finite")
        return [int(token) for token in tokens]

    def fail(self, problem: str) -> None:
        """Every member fails, its rows as they were before."""
        for member, before in zip(self.members, self.before, strict=True):
            member.fail(before, problem)


@frozen(eq=False)
class Runner:
    """Calls the model. `ragged` says whether it can take several sequences in one forward."""

    forward: Forward
    adapter: MLXCacheAdapter
    ragged: bool

    def prefill(self, one: LiveSequence, ids: Sequence[int], sampling: Sampling | None) -> Running:
        """Run `ids`; with `sampling`, choose the first token after them."""
        before = one.cache.length
        cache = self.adapter.single(one.cache)
        try:
            if sampling is None:
                self.forward.fill(ids, cache)
                one.cache.settle()
                return Running((one,), (before,))
            one.draw = Draw.of(sampling)
            return self._chosen((one,), (before,), self.forward.last(ids, cache))
        except Exception as error:  # whatever it is, it ends this sequence alone
            return _failed(one, before, error)

    def decode(self, batch: Sequence[LiveSequence]) -> list[Running]:
        """Run the last sampled token of each: in one forward, or where that fails one by one."""
        able = [one for one in batch if one.problem is None]
        done = [Running((one,), (one.cache.length,)) for one in batch if one.problem is not None]
        if not self.ragged:
            return done + [self._alone(one) for one in able]
        before = [one.cache.length for one in able]
        try:
            caches = [one.cache for one in able]
            return [*done, self._next(able, self.adapter.ragged(caches))] if able else done
        except Exception:  # found out below, whose it is
            for one, length in zip(able, before, strict=True):
                one.cache.rewind(length)
            return done + [self._alone(one) for one in able]

    def _alone(self, one: LiveSequence) -> Running:
        before = one.cache.length
        try:
            return self._next([one], self.adapter.single(one.cache))
        except Exception as error:  # whatever it is, it ends this sequence alone
            return _failed(one, before, error)

    def _next(self, batch: Sequence[LiveSequence], cache: list[object]) -> Running:
        before = tuple(one.cache.length for one in batch)
        logits = self.forward.next(_last_tokens(batch), cache)
        return self._chosen(tuple(batch), before, logits)

    def _chosen(
        self, members: tuple[LiveSequence, ...], before: tuple[int, ...], logits: mx.array
    ) -> Running:
        draws = [one.draw for one in members if one.draw is not None]
        positions = [one.cache.length for one in members]
        logits = logits.astype(mx.float32)
        if self.adapter.in_buffers:
            choice = choose(np.asarray(logits), draws, positions)
        else:
            choice = choose(logits, draws, positions)
            mx.async_eval(choice.tokens, choice.usable)  # type: ignore[no-untyped-call]
        for n, one in enumerate(members):
            one.token = choice.tokens[n]
        return Running(members, before, choice)


def _last_tokens(batch: Sequence[LiveSequence]) -> mx.array:
    tokens = [one.token for one in batch]
    return mx.stack([one if isinstance(one, mx.array) else mx.array(int(one)) for one in tokens])


def _failed(one: LiveSequence, before: int, error: Exception) -> Running:
    one.fail(before, _described(error))
    return Running((one,), (before,))


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
