"""What an answer must look like, and how it is kept to that while it is sampled."""

from typing import Protocol

from attrs import frozen


@frozen
class Grammar:
    """A language that an answer has to be a sentence of, as Lark text in llguidance's dialect.

    That dialect also has JSON schemas (`%json {...}`) and tokens by their id (`<[17]>`).
    """

    lark: str


class DeadEnd(Exception):
    """No token may come next: none of the vocabulary fits, or the grammar became too complex."""


class Guide(Protocol):
    """Keeps one answer to its grammar, token by token. Used by one thread at a time."""

    def fresh(self) -> "Guide":
        """A guide of the same grammar that has seen no token."""
        ...

    def allowed(self) -> bytes:
        """Which tokens may come next: bit `n % 8` of byte `n // 8` is set for token n.

        At least one is allowed. Once the sentence is complete, ends of turn are. Raises DeadEnd.
        """
        ...

    def accept(self, token: int) -> None:
        """`token`, one of those that were allowed, was chosen.

        Raises ValueError for any other, and DeadEnd when the grammar is too complex to go on with.
        """
        ...
