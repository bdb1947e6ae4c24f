"""One turn's sampled tokens on their way to becoming text."""

from collections.abc import Callable

from attrs import define, field

from agentcache.domain.errors import AgentCacheError
from agentcache.domain.events import Admitted, Delta, Event
from agentcache.domain.logprobs import Logprobs
from agentcache.domain.request import TurnRequest
from agentcache.domain.stopping import StopMatcher
from agentcache.domain.tokens import Tokens, tokens
from agentcache.ports.tokenizer import Detokenizer

Emit = Callable[[Event | AgentCacheError], None]


@define(eq=False)
class Speech:
    """What one turn says: ids in, text out, never a part of a stop sequence.

    `emit` takes events on the engine thread and must not block. `text` is all that was emitted.
    """

    request: TurnRequest
    emit: Emit
    arrived: float
    _detokenizer: Detokenizer
    admitted: bool = field(default=False, init=False)
    sampled: "Tokens[int]" = field(factory=tokens, init=False)
    first_at: float | None = field(default=None, init=False)
    last_at: float | None = field(default=None, init=False)
    stop: str | None = field(default=None, init=False)
    _parts: list[str] = field(factory=list, init=False)
    _unreported: int = field(default=0, init=False)
    _likely: list[tuple[int, Logprobs]] = field(factory=list, init=False)
    _matcher: StopMatcher = field(init=False)

    @_matcher.default
    def _new_matcher(self) -> StopMatcher:
        return StopMatcher(self.request.stop)

    @property
    def text(self) -> str:
        """All text that was emitted."""
        return "".join(self._parts)

    def admit(self, admitted: Admitted) -> None:
        """The turn has its place."""
        self.admitted = True
        self.emit(admitted)

    def say(
        self, token: int, now: float, is_text: bool = True, logprobs: Logprobs | None = None
    ) -> bool:
        """`token` was sampled. Returns whether a stop sequence ends the turn with it."""
        if self.first_at is None:
            self.first_at = now
        self.last_at = now
        self.sampled.append(token)
        self._unreported += 1
        if is_text:
            if logprobs is not None:
                self._likely.append((token, logprobs))
            self._push(self._detokenizer.add(token))
        return self.stop is not None

    def close(self) -> None:
        """No more tokens: emit what was held back."""
        if self.stop is None:
            self._push(self._detokenizer.finish())
        if self.stop is None and (rest := self._matcher.finish()):
            self._report(rest)
        if self._unreported:
            self._report("")

    def _push(self, text: str) -> None:
        if self.request.stop:
            text, self.stop = self._matcher.push(text)
        if text:
            self._report(text)

    def _report(self, text: str) -> None:
        self._parts.append(text)
        self.emit(Delta(text, self._unreported, tuple(self._likely)))
        self._unreported = 0
        self._likely.clear()
