"""Pacing: how many prompt tokens fit into a step beside those who decode."""

import math

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
    _count: float = field(default=0.0, init=False)
    _tokens: float = field(default=0.0, init=False)
    _squares: float = field(default=0.0, init=False)
    _seconds: float = field(default=0.0, init=False)
    _products: float = field(default=0.0, init=False)

    def learn(self, prefilled: int, decoded: int, seconds: float) -> None:
        """A step of a chunk of `prefilled` tokens beside `decoded` others took `seconds`."""
        if not prefilled:
            self.decode += (1 - _FORGET) * (seconds - self.decode) if self.decode else seconds
            return
        self._add(prefilled, max(0.0, seconds - self.decode) if decoded else seconds)
        if decoded and seconds > self.within:
            self._most = min(self._most, prefilled // 2)

    def seconds(self, tokens: int) -> float:
        """What a chunk of `tokens` is expected to cost; 0 when nothing is known."""
        if not self._count:
            return 0.0
        spread = self._count * self._squares - self._tokens**2
        if spread > _SAME * self._count * self._squares:
            each = (self._count * self._products - self._tokens * self._seconds) / spread
            fixed = (self._seconds - each * self._tokens) / self._count
            if each > 0 and fixed > 0:
                return fixed + each * tokens
        return self._products / self._squares * tokens

    def chunk(self, longest: int) -> int:
        """The chunk to run now beside those who decode: `longest`, or so much less as it takes.

        Less than LEAST_CHUNK is never worth a step.
        """
        size = longest
        while size > LEAST_CHUNK and (size > self._most or not self._fits(size)):
            size = max(LEAST_CHUNK, size // 2)
        self._most = 2 * size
        return size

    def _fits(self, size: int) -> bool:
        """Whether a chunk leaves everybody in time; a longer one than the last with some to spare,
        so that chunks do not go up and down."""
        room = self.within - self.decode
        return self.seconds(size) <= (room if 2 * size <= self._most else _SPARE * room)

    def _add(self, tokens: int, seconds: float) -> None:
        self._count = 1 + _FORGET * self._count
        self._tokens = tokens + _FORGET * self._tokens
        self._squares = tokens**2 + _FORGET * self._squares
        self._seconds = seconds + _FORGET * self._seconds
        self._products = tokens * seconds + _FORGET * self._products
