"""How likely tokens were, as OpenAI's dialects tell it."""

from collections.abc import Callable

from msgspec import Struct

from agentcache.adapters.http.hearing import Likely
from agentcache.domain.logprobs import Logprobs

Spell = Callable[[int], bytes]


class LikelyToken(Struct, frozen=True):
    """A token that might have been said here."""

    token: str
    logprob: float
    bytes: tuple[int, ...]


class SaidToken(Struct, frozen=True):
    """A token that was said, and others that might have been."""

    token: str
    logprob: float
    bytes: tuple[int, ...]
    top_logprobs: tuple[LikelyToken, ...]


def said_tokens(likely: Likely, spell: Spell) -> tuple[SaidToken, ...]:
    """Tokens that were said, in order; `spell` gives the bytes of one."""
    return tuple(_said(token, how, spell) for token, how in likely) if likely else ()


def _said(token: int, how: Logprobs, spell: Spell) -> SaidToken:
    top = tuple(_likely(other, logprob, spell) for other, logprob in how.top)
    one = _likely(token, how.chosen, spell)
    return SaidToken(one.token, one.logprob, one.bytes, top)


def _likely(token: int, logprob: float, spell: Spell) -> LikelyToken:
    spelled = spell(token)
    return LikelyToken(spelled.decode(errors="replace"), logprob, tuple(spelled))
