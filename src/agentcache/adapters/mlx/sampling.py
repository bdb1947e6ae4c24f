"""Choosing tokens: temperature, then top_k, top_p and min_p, each on what the one before left.

- temperature: logits are divided by it; 0 takes the most likely token.
- top_k: the k most likely tokens stay. top_p: of these, renormalised, the fewest most likely ones
  whose probabilities reach p stay. min_p: tokens at least p times as likely as the likeliest stay.
  Tokens as likely as the last one that stays also stay.
- All of them work on logits that bias, penalties and grammars have moved (`steering`).
- One token is drawn from what is left, by inverting the cumulative distribution in the order of the
  vocabulary at a number in [0, 1) that depends on the seed and on the position alone.

So a seed draws the same tokens whoever else is in the batch, up to rounding of the logits. The same
code runs eagerly on numpy arrays and lazily on MLX arrays.
"""

import math
import secrets
from collections.abc import Sequence
from hashlib import blake2b
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from agentcache.adapters.mlx.steering import Steering
from agentcache.domain.logprobs import Logprobs
from agentcache.domain.request import Sampling

Logits = NDArray[np.float32] | mx.array
_Array = Any  # like the logits: numpy's or MLX's
_UNIFORM_BITS = 23  # so that number × total < total in float32


@frozen
class Draw:
    """How one sequence's tokens are drawn: its sampling parameters, and a seed in any case."""

    sampling: Sampling
    seed: int
    steering: Steering | None = field(default=None, eq=False)

    @classmethod
    def of(cls, sampling: Sampling, steering: Steering | None = None) -> "Draw":
        """Without a seed, take a fresh one from the system's entropy."""
        seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        return cls(sampling, seed, steering)

    @property
    def greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.sampling.temperature == 0

    def uniform(self, position: int) -> float:
        """The number in [0, 1) by which the token at `position` is drawn."""
        digest = blake2b(f"{self.seed}/{position}".encode(), digest_size=8).digest()
        return (int.from_bytes(digest, "little") >> (64 - _UNIFORM_BITS)) / (1 << _UNIFORM_BITS)


@frozen(eq=False)
class Choice:
    """The chosen `tokens` [sequences], and for each whether its logits were `usable`.

    Logits are not when there is a NaN or +inf among them, or nothing above -inf. `logits` are those
    of the model, if anybody wants to be told how likely tokens were. Where a grammar is at a dead
    end, `stuck` says so, and the token means nothing.
    """

    tokens: NDArray[np.int64] | mx.array
    usable: NDArray[np.bool_] | mx.array
    logits: Logits | None = None
    stuck: Sequence[str | None] = ()

    def each(self) -> "Sequence[int | mx.array]":
        """The tokens one by one: numbers where they are computed, else lazy scalars."""
        if isinstance(self.tokens, mx.array):
            return [self.tokens[n] for n in range(self.tokens.size)]
        return [int(token) for token in self.tokens]


def choose(logits: Logits, draws: Sequence[Draw], positions: Sequence[int]) -> Choice:
    """A token for each row of float32 `logits` [sequences, vocabulary], to stand at `positions`."""
    xp: ModuleType = mx if isinstance(logits, mx.array) else np
    told = logits if any(draw.sampling.logprobs is not None for draw in draws) else None
    logits = _steered(logits, draws)
    stuck = [draw.steering.stuck if draw.steering else None for draw in draws]
    tokens = xp.argmax(logits, axis=-1)
    best = xp.max(logits, axis=-1, keepdims=True)
    usable = xp.isfinite(best[:, 0])
    if not all(draw.greedy for draw in draws):
        with np.errstate(invalid="ignore", over="ignore"):  # rows of no use, tiny temperatures
            drawn = _drawn(xp, logits - best, draws, positions)
        tokens = xp.where(xp.array([draw.greedy for draw in draws]), tokens, drawn)
    return Choice(tokens, usable, told, stuck)


def log_shares(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The logarithms of the probabilities, [vocabulary], that these logits are."""
    shifted = logits.astype(np.float64) - logits.max()
    shares: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return shares


def logprobs(logits: NDArray[np.float32], token: int, most: int) -> Logprobs:
    """How likely `token` was by its `logits` [vocabulary], and the `most` most likely tokens."""
    values = log_shares(logits)
    top = np.argsort(-values, kind="stable")[:most]
    return Logprobs(float(values[token]), tuple((int(n), float(values[n])) for n in top))


def _steered(logits: Logits, draws: Sequence[Draw]) -> Logits:
    """The logits as bias, penalties and grammars have them, where there are any."""
    if all(draw.steering is None for draw in draws):
        return logits
    on_host = isinstance(logits, np.ndarray)
    moved = np.array(logits) if on_host else np.zeros(logits.shape, np.float32)
    for draw, row in zip(draws, moved, strict=True):
        if draw.steering is not None:
            draw.steering.steer(row)
    return moved if on_host else logits + mx.array(moved)


def _drawn(
    xp: ModuleType, logits: Logits, draws: Sequence[Draw], positions: Sequence[int]
) -> _Array:
    scaled = logits / _column(xp, [one.sampling.temperature or 1.0 for one in draws])
    mass = xp.where(scaled >= _least(xp, scaled, draws), xp.exp(scaled), 0)
    reached = xp.cumsum(mass, axis=-1)
    numbers = [draw.uniform(at) for draw, at in zip(draws, positions, strict=True)]
    return xp.argmax(reached > _column(xp, numbers) * reached[:, -1:], axis=-1)


def _least(xp: ModuleType, scaled: _Array, draws: Sequence[Draw]) -> _Array:
    """The smallest value that stays in each row, as a column; the largest in a row is 0."""
    asked = [draw.sampling for draw in draws]
    likely = _column(xp, [math.log(one.min_p) if one.min_p else -math.inf for one in asked])
    if all(one.top_k == 0 and one.top_p == 1 for one in asked):
        return likely
    size = scaled.shape[-1]
    ordered = -xp.sort(-scaled, axis=-1)
    rank = xp.arange(size)[None]
    mass = xp.where(rank < _column(xp, [one.top_k or size for one in asked]), xp.exp(ordered), 0)
    before = xp.cumsum(mass, axis=-1) - mass
    # An unbounded share where p is 1: rounding must not cut off what is least likely.
    share = _column(xp, [one.top_p if one.top_p < 1 else math.inf for one in asked])
    stays = (mass > 0) & (before < share * xp.sum(mass, axis=-1, keepdims=True))
    last = xp.maximum(xp.sum(stays, axis=-1, keepdims=True), 1) - 1
    return xp.maximum(xp.take_along_axis(ordered, last, axis=-1), likely)


def _column(xp: ModuleType, values: Sequence[float]) -> _Array:
    return xp.array(values, dtype=xp.float32)[:, None]
