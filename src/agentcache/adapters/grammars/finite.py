"""Numbers of JSON that a double holds.

llguidance lets a number without bounds have any exponent and any count of digits. It can be told
bounds, but then allows no exponents at all: 3e-4 could not be said. So what makes a number too
large is taken out of its masks.
"""

import re
from collections.abc import Callable, Iterable, Sequence

from attrs import define, field, frozen

EXPONENT = 2  # digits
DIGITS = 120  # before the next token, which may be 64 zeros; with the exponent all is below 1e308
_TAIL = DIGITS + 32
_NUMBER = re.compile(rb'(?<![\w.+"-])-?(\d+)(?:\.(\d*))?(?:[eE][+-]?(\d*))?$')
_LARGE = re.compile(rb"[eE][+-]?\d{%d}" % (EXPONENT + 1))
_MAY_END = frozenset(b"0123456789.eE+-")


@frozen(eq=False)
class NumberTokens:
    """Which tokens of a vocabulary, `pieces` by id, have to do with numbers: masks as integers.

    Those of `longer[n]` begin with more than n digits, those of `large` hold too long an exponent.
    Of `close`, some may come next where a number may end; of `quote`, in most texts.
    """

    pieces: Sequence[bytes] = field(repr=False)
    longer: tuple[int, ...] = field(repr=False)
    large: int = field(repr=False)
    close: int = field(repr=False)
    quote: int = field(repr=False)

    @classmethod
    def of(cls, pieces: Sequence[bytes], ends: frozenset[int]) -> "NumberTokens":
        """Those of `pieces`, of which `ends` end the turn, and a number that is all of it."""

        def those(fits: Callable[[bytes], object]) -> int:
            return _mask(token for token, piece in enumerate(pieces) if fits(piece))

        longer = (re.compile(rb"[+-]?\d{%d}" % (n + 1)) for n in range(EXPONENT + 1))
        return cls(
            pieces,
            tuple(those(one.match) for one in longer),
            those(_LARGE.search),
            those(lambda piece: piece[:1] in (b",", b"]", b"}")) | _mask(ends),
            those(lambda piece: piece[:1] == b'"'),
        )


@define(eq=False)
class NumberLimit:
    """Keeps the numbers of one answer small enough, token by token."""

    _tokens: NumberTokens
    _tail: bytes = b""

    def accept(self, token: int) -> None:
        """`token` was said."""
        self._tail = (self._tail + self._tokens.pieces[token])[-_TAIL:]

    def within(self, mask: bytes) -> bytes:
        """`mask` without the tokens that would make a number too large; see `Guide.allowed`.

        A number is told from a text that looks like one by what may follow. In doubt it is `mask`.
        """
        if not self._tail or self._tail[-1] not in _MAY_END:
            return mask
        allowed = int.from_bytes(mask, "little")
        left = allowed & ~self._barred(allowed)
        return left.to_bytes(len(mask), "little") if left else mask

    def _barred(self, allowed: int) -> int:
        found = _NUMBER.search(self._tail)
        if found is None or allowed & self._tokens.quote:
            return 0
        whole, fraction, exponent = found.groups()
        if exponent is not None:
            if exponent and not allowed & self._tokens.close:
                return 0
            return self._tokens.longer[max(0, EXPONENT - len(exponent))]
        if len(whole) + len(fraction or b"") < DIGITS:
            return self._tokens.large
        return self._tokens.large | self._tokens.longer[0]


def _mask(tokens: Iterable[int]) -> int:
    found = bytearray()
    for token in tokens:
        if len(found) <= token // 8:
            found.extend(bytes(token // 8 + 1 - len(found)))
        found[token // 8] |= 1 << token % 8
    return int.from_bytes(found, "little")
