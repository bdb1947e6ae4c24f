"""A model made of hashes: what its cache holds, and what it says next, as pure functions.

The row of a token is a function of all tokens up to it; the next token is a function of every bit
in the cache. The numbers in rows are whole and below 256, so they are exact in every float format.
"""

import math
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from agentcache.domain.request import Sampling
from agentcache.domain.spec import CacheSpec, LayerGroup, LayerKind, LayerSpec, StateArray
from agentcache.domain.trace import TOP, Top
from agentcache.ports.rows import RowArray, Rows

Words = NDArray[np.uint64]
_WORD = (1 << 64) - 1
_ODD = 0x9E3779B97F4A7C15
_KEY_DIM, _VALUE_DIM = 8, 4  # the eight bytes of a word; unequal, as under MLA


def hash_spec(layers: int = 2, window: int | None = None, state: bool = False) -> CacheSpec:
    """A spec of `layers` full layers, on demand with one window and one state layer more."""
    found = [LayerSpec.full(1, _KEY_DIM, _VALUE_DIM)] * layers
    if window is not None:
        found.append(LayerSpec(LayerKind.WINDOW, 1, _KEY_DIM, _VALUE_DIM, window))
    if state:
        found.append(LayerSpec(LayerKind.STATE, state=(StateArray((_KEY_DIM,), "float32"),)))
    return CacheSpec(tuple(found))


@frozen(eq=False)
class HashModel:
    """What is computed. `end_rate` is the share of tokens that are one of `ends`."""

    spec: CacheSpec
    vocabulary: int
    ends: frozenset[int]
    end_rate: float

    def rows(self, before: Rows, ids: Sequence[int]) -> Rows:
        """The rows of `ids` behind `before`, whose last row and whose state they continue from.

        Window layers have a row for every id here; the state is the one after the last id.
        """
        chain = _chain(_link(before), ids)
        held = {kind: dict[str, RowArray]() for kind in (LayerKind.FULL, LayerKind.WINDOW)}
        for group in self.spec.groups:
            for role, dim in group.roles():
                held[group.kind][role] = _spread(group, role, chain, dim)
        state: dict[str, RowArray] = {
            name: _spread_word(_chain(_word(array), ids)[-1:], 0)[0]
            for name, array in before.state.items()
        }
        full, window = held[LayerKind.FULL], held[LayerKind.WINDOW]
        return Rows(before.stop, before.stop + len(ids), full, window, state)

    def token(self, cache: Rows, sampling: Sampling, allowed: bytes | None = None) -> int:
        """What comes after `cache`: all rows from 0 on, of a window the last ones.

        `allowed` is a guide's mask; a bias below -99 forbids a token, too.
        """
        value = _value(cache, repr(_asked(sampling)))
        chance, pick = (value & 0xFFFFFFFF) / 2**32, value >> 32
        ends = sorted(self.ends)
        if allowed is not None or sampling.logit_bias:
            return self._among(pick, allowed, sampling)
        if chance < self.end_rate:
            return ends[pick % len(ends)]
        token = pick % (self.vocabulary - len(ends))
        for end in ends:  # ascending: what is left after stepping over each is no end
            token += token >= end
        return token

    def likeliest(self, cache: Rows) -> Top:
        """The likeliest tokens after `cache`, none of which has anything to do with the next."""
        first, count = _value(cache, "likeliest"), min(TOP, self.vocabulary)
        return tuple(((first + n) % self.vocabulary, -(n + 1) * math.log(2)) for n in range(count))

    def _among(self, pick: int, allowed: bytes | None, sampling: Sampling) -> int:
        banned = {token for token, bias in sampling.logit_bias if bias < -99}
        free = [
            token
            for token in range(self.vocabulary)
            if token not in banned and (allowed is None or _has(allowed, token))
        ]
        return free[pick % len(free)]


def _value(cache: Rows, salt: str) -> int:
    """128 bits that follow from every bit of `cache`."""
    digest = blake2b(salt.encode(), digest_size=16)
    digest.update(cache.stop.to_bytes(8, "little"))
    for held in (cache.full, cache.window, cache.state):
        for name, array in sorted(held.items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array).data)
    return int.from_bytes(digest.digest(), "little")


def _has(mask: bytes, token: int) -> bool:
    return token // 8 < len(mask) and bool(mask[token // 8] >> token % 8 & 1)


def _asked(sampling: Sampling) -> tuple[object, ...]:
    """What of `sampling` makes a difference: greedy is greedy, whatever filters are asked for."""
    moves = (sampling.presence_penalty, sampling.frequency_penalty, sampling.logit_bias)
    moved = moves if any(moves) else ()
    if sampling.temperature == 0:
        return moved
    filters = (sampling.top_p, sampling.top_k, sampling.min_p)
    return (sampling.temperature, *filters, sampling.seed, *moved)


def _link(before: Rows) -> int:
    """The last word of the chain, read back from the last row; 0 where there is none."""
    return _word(before.full["g0.k"][0, 0, -1]) if before.stop > before.start else 0


def _word(numbers: RowArray) -> int:
    """The word that `_spread_word` wrote; another one for numbers that it cannot have written."""
    with np.errstate(invalid="ignore"):
        octets = numbers.astype(np.int64).astype(np.uint8)
    if octets.astype(numbers.dtype).tobytes() == numbers.tobytes():
        return int.from_bytes(octets.tobytes(), "little")
    return int.from_bytes(blake2b(numbers.tobytes(), digest_size=8).digest(), "little")


def _chain(link: int, ids: Sequence[int]) -> Words:
    words = []
    for token in ids:
        link = ((link ^ (token + 1)) * _ODD) & _WORD
        link ^= link >> 29
        words.append(link)
    return np.array(words, np.uint64)


def _spread(group: LayerGroup, role: str, chain: Words, dim: int) -> RowArray:
    """Rows [layers, 1, len(chain), dim]; the first layer's keys are the bytes of the chain."""
    salt = 1000 if role.endswith(".v") else 0
    layers = [_spread_word(chain, layer + salt)[None, :, :dim] for layer in group.layers]
    return np.stack(layers)


def _spread_word(words: Words, salt: int) -> NDArray[np.float32]:
    """Eight numbers below 256 for each word: its own bytes when `salt` is 0."""
    turned = words * np.uint64((1 + salt * _ODD * 2) & _WORD)
    return turned.astype("<u8").view(np.uint8).reshape(-1, _KEY_DIM).astype(np.float32)
