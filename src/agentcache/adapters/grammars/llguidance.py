"""Guides by llguidance, whose masks take microseconds."""

from collections.abc import Callable, Sequence
from functools import cached_property

from attrs import define, field, frozen
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from agentcache.adapters.grammars.finite import NumberLimit, NumberTokens
from agentcache.adapters.grammars.trial import Trial, first_line
from agentcache.domain.errors import InvalidRequest
from agentcache.domain.guide import DeadEnd, Grammar
from agentcache.ports.grammar import Lexicon

MOST_CHARACTERS = 256 * 1024
_NOT_ALLOWED = "doesn't satisfy the grammar"


@define(eq=False)
class LLGuide:
    """A matcher of llguidance; implements `domain.guide.Guide`."""

    _tokenizer: LLTokenizer
    _grammar: str
    _numbers: NumberTokens
    _matcher: LLMatcher
    _limit: NumberLimit = field(init=False)
    _mask: bytes = field(default=b"", init=False)

    @classmethod
    def of(cls, tokenizer: LLTokenizer, grammar: str, numbers: NumberTokens) -> "LLGuide":
        """At the beginning of an answer."""
        return cls(tokenizer, grammar, numbers, LLMatcher(tokenizer, grammar, log_level=0))

    @_limit.default
    def _no_number_yet(self) -> NumberLimit:
        return NumberLimit(self._numbers)

    def fresh(self) -> "LLGuide":
        """See `Guide.fresh`."""
        matcher = self._matcher.deep_copy()
        matcher.reset()
        return LLGuide(self._tokenizer, self._grammar, self._numbers, matcher)

    def allowed(self) -> bytes:
        """See `Guide.allowed`."""
        mask = self._matcher.compute_bitmask()  # without the interpreter's lock
        if self._matcher.is_error():
            raise DeadEnd(first_line(self._matcher.get_error()))
        if not any(mask):
            raise DeadEnd("no token fits")
        self._mask = self._limit.within(mask)
        return self._mask

    def accept(self, token: int) -> None:
        """See `Guide.accept`."""
        if self._matcher.consume_token(token):
            self._mask = b""
            self._limit.accept(token)
            return
        problem = first_line(self._matcher.get_error())
        if _NOT_ALLOWED in problem and not self._was_allowed(token):
            raise ValueError(f"token {token} is not allowed here: {problem}")
        raise DeadEnd(problem)

    def _was_allowed(self, token: int) -> bool:
        """Tokens that it forces are allowed before it is known whether their bytes lead on."""
        return token // 8 < len(self._mask) and bool(self._mask[token // 8] >> token % 8 & 1)


@frozen(eq=False, slots=False)
class LLGrammars:
    """Implements `ports.grammar.Grammars`, for answers that are ended by one of `ends`.

    `lexicon` is asked for when the first guide is wanted: to make it takes a moment.
    """

    _lexicon: Callable[[], Lexicon | None]
    _ends: frozenset[int]
    _trial: Trial = field(factory=Trial, init=False)

    @cached_property
    def _known(self) -> Lexicon:
        lexicon = self._lexicon()
        if lexicon is None:
            problem = "answers of this model cannot be kept to a schema: its tokens have no bytes"
            raise InvalidRequest(problem)
        return lexicon

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        wrapper = TokenizerWrapper(_Vocabulary(self._known, self._ends))
        return LLTokenizer(wrapper, eos_token=sorted(self._ends))

    @cached_property
    def _numbers(self) -> NumberTokens:
        return NumberTokens.of(self._known.pieces, self._ends)

    def spelled(self, text: str) -> str:
        """See `Grammars.spelled`."""
        return self._known.spelled(text)

    def guide(self, grammar: Grammar) -> LLGuide:
        """See `Grammars.guide`."""
        if len(grammar.lark) > MOST_CHARACTERS:
            size = len(grammar.lark)
            raise InvalidRequest(f"the schema has {size} characters, at most {MOST_CHARACTERS} fit")
        text = LLMatcher.grammar_from_lark(grammar.lark)
        self._trial.check(text)
        guide = LLGuide.of(self._tokenizer, text, self._numbers)
        try:
            guide.allowed()
        except DeadEnd as error:
            raise InvalidRequest(f"the schema cannot be used: {error}") from None
        return guide


class _Vocabulary:
    """What TokenizerWrapper looks for."""

    def __init__(self, lexicon: Lexicon, ends: frozenset[int]) -> None:
        self.eos_token_id = min(ends)
        self.bos_token_id = None
        self.tokens: Sequence[bytes] = list(lexicon.pieces)
        self.special_token_ids = sorted(lexicon.control | ends)
        self._encode = lexicon.encode

    def __call__(self, text: bytes | str) -> list[int]:
        return list(self._encode(text if isinstance(text, str) else text.decode()))
