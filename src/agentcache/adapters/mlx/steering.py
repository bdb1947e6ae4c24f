"""What moves a sequence's logits before a token is chosen: a bias, penalties, a grammar.

All of it is added: penalties as OpenAI defines them (count × frequency + presence, taken off the
logits of tokens that were sampled before), minus infinity for what the grammar does not allow.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager

import numpy as np
from attrs import define, field
from numpy.typing import NDArray

from agentcache.domain.guide import DeadEnd, Guide
from agentcache.domain.request import Sampling

Logits = NDArray[np.float32]


@define(eq=False)
class Steering:
    """Follows one sequence's tokens. `said` are those that were sampled before it came here.

    A grammar's mask may be computed on another thread (`follow` with a `pool`) while the model
    runs; `steer` waits for it. Once no token is allowed it is `stuck`, and says why.
    """

    sampling: Sampling
    guide: Guide | None = None
    said: Counter[int] = field(factory=Counter)
    stuck: str | None = field(default=None, init=False)
    _mask: "Future[bytes] | None" = field(default=None, init=False)

    @classmethod
    def of(cls, sampling: Sampling, guide: Guide | None, said: Iterable[int]) -> "Steering | None":
        """None where nothing moves the logits."""
        penalties = sampling.presence_penalty or sampling.frequency_penalty
        if guide is None and not penalties and not sampling.logit_bias:
            return None
        steering = cls(sampling, guide and guide.fresh())
        for token in said:
            steering.follow(token)
        return steering

    def follow(self, token: int, pool: Executor | None = None) -> None:
        """`token` was chosen: go on from there. Raises ValueError where the grammar cannot."""
        self.said[token] += 1
        if self.guide is None:
            return
        if pool is not None:
            self._mask = pool.submit(_next, self.guide, token)
        else:
            with self._alert():
                self.guide.accept(token)

    def steer(self, logits: Logits) -> None:
        """Move the `logits` [vocabulary] of the next token, in place."""
        for token, bias in self.sampling.logit_bias:
            logits[token] += bias
        presence, frequency = self.sampling.presence_penalty, self.sampling.frequency_penalty
        if (presence or frequency) and self.said:
            tokens = np.fromiter(self.said, np.int64, len(self.said))
            counts = np.fromiter(self.said.values(), np.float32, len(self.said))
            logits[tokens] -= frequency * counts + presence
        if self.guide is not None and self.stuck is None:
            with self._alert(), np.errstate(invalid="ignore"):  # infinite ones are of no use
                mask, self._mask = self._mask, None
                allowed = _allowed(mask.result() if mask else self.guide.allowed(), logits.size)
                np.add(logits, -np.inf, out=logits, where=~allowed)

    @contextmanager
    def _alert(self) -> Iterator[None]:
        try:
            yield
        except DeadEnd as error:
            self.stuck = f"the grammar leads nowhere: {error}"


def _next(guide: Guide, token: int) -> bytes:
    guide.accept(token)
    return guide.allowed()


def _allowed(mask: bytes, size: int) -> NDArray[np.bool_]:
    """The first `size` bits; models have logits for more tokens than tokenizers have."""
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[:size].astype(bool)
    if not bits.any():
        raise DeadEnd("no token fits")
    return np.pad(bits, (0, size - bits.size))
