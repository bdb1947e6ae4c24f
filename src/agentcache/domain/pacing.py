"""Pacing: how many prompt tokens fit into a step beside those who decode."""

import math
from collections.abc import Sequence

from attrs import define, field

LEAST_CHUNK = 16
_FORGET = 0.7  # what a step counts for after the next one
_SAME = 1e-9  # chunks that differ less than this (relative variance) tell no fixed cost apart

_SPARE = 0.9


@define(eq=False)
class Pace:
    """Learns what steps cost and keeps those that others wait for within `within` seconds.

    A chunk of n tokens is taken to cost `fixed + each * n` seconds, by least squares over the last
    steps, beside what a step without a chunk costs. Whatever the cost really is: after a step that
    took too long the next chunk is half as long at most, and chunks grow by doubling at most.
    Chunks are halvings of the longest one, so that few lengths occur: kernels are compiled for
    each, and equal chunks give equal rows.
    """

    within: float
    decode: float = 0.0
    _most: float = field(default=math.inf, init=False)
    # Sums over the last steps: of products of a step's chunks, its tokens and its seconds.
    _chunks_chunks: float = field(default=0.0, init=False)
    _chunks_tokens: float = field(default=0.0, init=False)
    _tokens_tokens: float = field(default=0.0, init=False)
    _chunks_seconds: float = field(default=0.0, init=False)
    _tokens_seconds: float = field(default=0.0, init=False)

    def learn(self, chunks: Sequence[int], decoded: int, seconds: float) -> None:
        """A step with chunks of so many tokens beside `decoded` others took `seconds`."""
        if not chunks:
            self.decode += (1 - _FORGET) * (seconds - self.decode) if self.decode else seconds
            return
        tokens = sum(chunks)
        self._add(len(chunks), tokens, max(0.0, seconds - self.decode) if decoded else seconds)
        if decoded and seconds > self.within:
            self._most = min(self._most, tokens // 2)

    def seconds(self, tokens: int) -> float:
        """What a chunk of `tokens` is expected to cost; 0 when nothing is known."""
        if not self._chunks_chunks:
            return 0.0
        products = self._chunks_chunks * self._tokens_tokens
        spread = products - self._chunks_tokens**2
        if spread > _SAME * products:
            each = (
                self._chunks_chunks * self._tokens_seconds
                - self._chunks_tokens * self._chunks_seconds
            ) / spread
            fixed = (self._chunks_seconds - each * self._chunks_tokens) / self._chunks_chunks
            if each > 0 and fixed > 0:
                return fixed + each * tokens
        return self._tokens_seconds / self._tokens_tokens * tokens

    def chunk(self, longest: int) -> int:
        """The chunk to run now beside those who decode: `longest`, or so much less as it takes.

        Less than LEAST_CHUNK is never worth a step.
        """
        size = longest
        while size > LEAST_CHUNK and (size > self._most or not self._fits(size)):
            size = max(LEAST_CHUNK, size // 2)
        self._most = 2 * size
        return size

    def joins(self, tokens: int, chunks: Sequence[int], decoded: int) -> bool:
        """Whether a chunk of `tokens` more fits into a step with `chunks` beside `decoded` others;
        not before anything is known.
        """
        room = self.within - (self.decode if decoded else 0.0)
        expected = sum(self.seconds(one) for one in (*chunks, tokens))
        return 0 < expected <= _SPARE * room

    def _fits(self, size: int) -> bool:
        """Whether a chunk leaves everybody in time; a longer one than the last with some to spare,
        so that chunks do not go up and down."""
        room = self.within - self.decode
        return self.seconds(size) <= (room if 2 * size <= self._most else _SPARE * room)

    def _add(self, chunks: int, tokens: int, seconds: float) -> None:
        self._chunks_chunks = chunks**2 + _FORGET * self._chunks_chunks
        self._chunks_tokens = chunks * tokens + _FORGET * self._chunks_tokens
        self._tokens_tokens = tokens**2 + _FORGET * self._tokens_tokens
        self._chunks_seconds = chunks * seconds + _FORGET * self._chunks_seconds
        self._tokens_seconds = tokens * seconds + _FORGET * self._tokens_seconds
