"""Runs single forwards: a chunk of one sequence, or one token each of a batch.

Results are lazy where MLX is, so the next step can be started before this one's tokens are known.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
from attrs import define, evolve, field, frozen

from agentcache.adapters.mlx.cache_adapter import MLXCacheAdapter, ModelCache
from agentcache.adapters.mlx.forward import Forward
from agentcache.adapters.mlx.live import LiveCache, Undo
from agentcache.adapters.mlx.recollection import Recollection, found
from agentcache.adapters.mlx.sampling import Choice, Draw, choose, logprobs
from agentcache.adapters.mlx.steering import Steering
from agentcache.domain.logprobs import Logprobs
from agentcache.domain.plan import Again, PrefillChunk, Retold, Sampled, SequenceFailed
from agentcache.domain.request import Sampling


@define(eq=False)
class LiveSequence:
    """One sequence: its caches, how it is sampled, the last sampled token, which may be lazy.

    `epoch` changes when the caller resets it; with a `problem` it has failed and runs no more. It
    is `stuck` if that is its guide's.
    """

    number: int
    cache: LiveCache
    draw: Draw | None = None
    token: int | mx.array | None = None
    problem: str | None = None
    stuck: bool = False
    epoch: int = 0
    recollection: Recollection | None = None

    def reset(self, length: int) -> None:
        """Forget the rows from `length` on, and all that came of them."""
        self.cache.rewind(length)
        self.draw = self.token = self.problem = None
        self.stuck = False
        self.epoch += 1
        if self.recollection is not None:
            self.recollection.cut(length)


@frozen(eq=False)
class Member:
    """A sequence in a forward, and what it was when that started."""

    one: LiveSequence
    _undo: Undo = field(init=False)
    _epoch: int = field(init=False)

    @_undo.default
    def _mark_now(self) -> Undo:
        return self.one.cache.mark()

    @_epoch.default
    def _epoch_now(self) -> int:
        return self.one.epoch

    @property
    def current(self) -> bool:
        """Whether nobody reset the sequence since."""
        return self.one.epoch == self._epoch

    def rewind(self) -> None:
        """Put the sequence's caches back to what they were."""
        self._undo()

    def fail(self, problem: str, stuck: bool = False) -> None:
        """The sequence goes no further; its rows are those from before."""
        if self.current and self.one.problem is None:
            self.rewind()
            self.one.problem, self.one.stuck = problem, stuck


@frozen(eq=False)
class Rerun:
    """What came again at the last positions that were there: logits [positions, vocabulary]."""

    again: Again
    logits: mx.array


@frozen(eq=False)
class Running:
    """A forward under way. Without a choice nothing is sampled, or all members have failed."""

    members: Sequence[Member]
    choice: Choice | None = None
    rerun: Rerun | None = None

    def outcomes(self) -> Iterator[Sampled | SequenceFailed | Retold]:
        """Wait for the tokens. Sequences that were reset since are left out."""
        tokens = self._tokens()
        if self.rerun is not None and self.members[0].current:
            told = found(self.rerun.logits, self.rerun.again.asked)
            yield Retold(self.members[0].one.number, told)
        for n, member in enumerate(self.members):
            one = member.one
            if one.problem is not None and member.current:
                yield SequenceFailed(one.number, one.problem, one.stuck)
            elif tokens is not None and member.current:
                yield Sampled(one.number, tokens[n], self._logprobs(n, tokens[n]))

    def _logprobs(self, n: int, token: int) -> Logprobs | None:
        assert self.choice is not None
        draw = self.members[n].one.draw
        if self.choice.logits is None or draw is None or draw.sampling.logprobs is None:
            return None
        return logprobs(np.asarray(self.choice.logits[n]), token, draw.sampling.logprobs)

    def _tokens(self) -> Sequence[int] | None:
        if self.choice is None:
            return None
        try:
            tokens, usable = np.asarray(self.choice.tokens), np.asarray(self.choice.usable)
        except Exception as error:  # the device's: what was lazy cannot be tried again one by one
            for member in self.members:
                member.fail(_described(error))
            return None
        for member, good, stuck in zip(self.members, usable, self.choice.stuck, strict=True):
            if stuck is not None:
                member.fail(stuck, stuck=True)
            elif not good:
                member.fail("its logits are not finite")
        return [int(token) for token in tokens]


@frozen(eq=False)
class Runner:
    """Calls the model. `ragged` says whether it can take several sequences in one forward."""

    forward: Forward
    adapter: MLXCacheAdapter
    ragged: bool

    def prefill(self, one: LiveSequence, chunk: PrefillChunk) -> Running:
        """Run the ids of `chunk`; with its `sampling`, choose the first token after them."""
        member = Member(one)
        if one.problem is not None:
            return Running([member])
        cache = self.adapter.single(one.cache)
        try:
            if chunk.again is not None:
                return self._again(member, chunk, chunk.again, cache)
            if chunk.sampling is None:
                self.forward.fill(chunk.ids, cache)
                one.cache.settle()
                return Running([member])
            _begin_draw(one, chunk, chunk.sampling)
            return self._chosen([member], self.forward.last(chunk.ids, cache))
        except Exception as error:  # whatever it is, it ends this sequence alone
            member.fail(_described(error))
            return Running([member])

    def _again(
        self, member: Member, chunk: PrefillChunk, again: Again, cache: ModelCache
    ) -> Running:
        one, count = member.one, len(again.ids)
        one.cache.hold(count)
        logits = self.forward.again(again.ids + chunk.ids, count, cache)
        rerun = Rerun(again, logits[:count])
        if chunk.sampling is None:
            one.cache.settle()
            return Running([member], rerun=rerun)
        _begin_draw(one, chunk, chunk.sampling)
        return evolve(self._chosen([member], logits[count:]), rerun=rerun)

    def decode(self, batch: Sequence[LiveSequence]) -> Iterator[Running]:
        """Run the last sampled token of each: in one forward, or where that fails one by one."""
        yield Running([Member(one) for one in batch if one.problem is not None])
        members = [Member(one) for one in batch if one.problem is None]
        for member in members:
            _begin_mask(member.one)
        if self.ragged and len(members) > 1:
            try:
                yield self._together(members)
                return
            except Exception:  # whose it is shows when each runs alone
                for member in members:
                    member.rewind()
        for member in members:
            yield self._alone(member)

    def _together(self, members: Sequence[Member]) -> Running:
        cache = self.adapter.ragged([member.one.cache for member in members])
        return self._chosen(members, self.forward.next(_last_tokens(members), cache))

    def _alone(self, member: Member) -> Running:
        try:
            cache = self.adapter.single(member.one.cache)
            return self._chosen([member], self.forward.next(_last_tokens([member]), cache))
        except Exception as error:  # whatever it is, it ends this sequence alone
            member.fail(_described(error))
            return Running([member])

    def _chosen(self, members: Sequence[Member], logits: mx.array) -> Running:
        draws = [member.one.draw or _GREEDY for member in members]
        positions = [member.one.cache.length for member in members]
        logits = logits.astype(mx.float32)
        _follow_lazy(members, logits)
        if self.adapter.in_buffers:
            choice = choose(np.asarray(logits), draws, positions)
        else:
            choice = choose(logits, draws, positions)
            mx.async_eval(choice.tokens, choice.usable)  # type: ignore[no-untyped-call]
        for row, member in enumerate(members):
            member.one.cache.settle()
            if member.one.recollection is not None:
                member.one.recollection.add(positions[row] - 1, logits, row)
        for member, token in zip(members, choice.each(), strict=True):
            member.one.token = token
        return Running(members, choice)


def _begin_draw(one: LiveSequence, chunk: PrefillChunk, sampling: Sampling) -> None:
    one.draw = Draw.of(sampling, Steering.of(sampling, chunk.guide, chunk.said))
    one.recollection = Recollection() if chunk.traced else None


def _begin_mask(one: LiveSequence) -> None:
    """Let the mask of the next token be worked out beside the forward that needs it."""
    if one.draw and one.draw.steering and isinstance(one.token, int):
        one.draw.steering.follow(one.token, _masks)


def _follow_lazy(members: Sequence[Member], logits: mx.array) -> None:
    """Where tokens are lazy, the mask is worked out here, while the device runs."""
    steered = [
        (one.token, one.draw.steering)
        for one in (member.one for member in members)
        if isinstance(one.token, mx.array) and one.draw and one.draw.steering
    ]
    if steered:
        mx.async_eval(logits)  # type: ignore[no-untyped-call]
    for token, steering in steered:
        steering.follow(int(np.asarray(token)))


_masks = ThreadPoolExecutor(1, "agentcache-masks")
_GREEDY = Draw.of(Sampling(temperature=0))


def _last_tokens(members: Sequence[Member]) -> mx.array:
    tokens = [member.one.token for member in members if member.one.token is not None]
    return mx.stack([mx.array(token) for token in tokens])


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
