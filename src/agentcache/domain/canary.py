"""The canary: whether rows that came back from storage still say what they said before.

Checksums find bytes that changed. They do not find rows that are not those of their tokens. So at
the end of a turn its last positions are remembered with the likeliest tokens after each; where the
session is restored for the first time since the start, these positions run again on the restored
rows, and what comes out is compared.
"""

from collections.abc import Sequence
from math import exp, inf, isfinite, log

from attrs import frozen

from agentcache.domain.plan import Again
from agentcache.domain.segment import Segment
from agentcache.domain.session import SessionKey
from agentcache.domain.trace import Top

# What a codec may change, in nats: several times the most that was seen (decision 0014).
TOLERANCE = {"native": 1e-4, "f16": 1e-4, "q8": 5e-3, "k8v4": 3e-2, "q4": 0.3}
# What rounding may change on top, where one token alone and several at once round differently.
ROUNDING = {"float32": 0.0, "float16": 1e-3, "bfloat16": 1e-2}
_LEAST = 1e-6  # below this, what is left of a distribution is rounding


def tolerance(codec: str, dtype: str) -> float | None:
    """The most that `divergence` may be for rows of `codec`; None for codecs nobody measured."""
    lost = TOLERANCE.get(codec)
    return None if lost is None else lost + ROUNDING.get(dtype, inf)


def divergence(tops: Sequence[Top], found: Sequence[Sequence[float]]) -> float:
    """Kullback-Leibler divergence in nats, the mean over positions, of what was from what is.

    Of each position only the remembered tokens are told apart: all others count as one. `found` are
    their log-probabilities now. Infinity where these are no numbers, or not as many.
    """
    if not tops or len(tops) != len(found):
        return inf
    return sum(map(_divergence, tops, found)) / len(tops)


def _divergence(top: Top, found: Sequence[float]) -> float:
    if len(top) != len(found) or not all(isfinite(now) and now <= _LEAST for now in found):
        return inf
    told = sum(exp(before) * (before - now) for (_, before), now in zip(top, found, strict=True))
    rest = max(1 - sum(exp(before) for _, before in top), _LEAST)
    return told + rest * log(rest / max(1 - sum(map(exp, found)), _LEAST))


@frozen(eq=False)
class Canary:
    """One comparison: `again` runs before the first chunk after `segments` were restored."""

    session: SessionKey
    again: Again
    tops: tuple[Top, ...]
    segments: tuple[Segment, ...]
    tolerance: float

    def agrees(self, found: Sequence[Sequence[float]]) -> bool:
        """Whether the rows say what they said, as far as the codec can be held to it."""
        return divergence(self.tops, found) <= self.tolerance
