"""What all turns of a model say: the planner's notices, told to those who wait for them."""

import logging

from attrs import define, field

from agentcache.domain.errors import AgentCacheError
from agentcache.domain.notices import Placed, Refused, Stuck, Token
from agentcache.domain.planner import Planner
from agentcache.domain.request import Finish, TurnRequest
from agentcache.domain.spans import Span, concatenated
from agentcache.domain.tokens import common_prefix
from agentcache.domain.turn import Turn
from agentcache.ports.telemetry import Telemetry
from agentcache.rendering import PromptBuilder
from agentcache.speech import Emit, Speech

log = logging.getLogger(__name__)
Spans = tuple[Span, ...]


@define(eq=False)
class Speeches:
    """The speech of every turn that is not over, by its number.

    When a stop sequence or the model ends one, the planner is told how much of it is remembered,
    and the spans that this makes are kept until the turn is over.
    """

    planner: Planner
    builder: PromptBuilder
    telemetry: Telemetry
    _speeches: dict[int, Speech] = field(factory=dict, init=False)
    _spans: dict[int, Spans] = field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._speeches.keys() | self._spans.keys())

    def enqueue(self, request: TurnRequest, emit: Emit, now: float) -> int:
        """Let a turn wait for its place; `emit` is told what becomes of it. Returns its number.

        Raises what `Planner.enqueue` raises, and InvalidRequest for an empty stop sequence.
        """
        speech = Speech(request, emit, now, self.builder.detokenizer(request.prompt))
        number = self.planner.enqueue(request, now).number
        self._speeches[number] = speech
        return number

    def say(self, notice: Token, now: float) -> None:
        """Tell a token that was sampled."""
        turn, speech = self.planner.turns[notice.turn], self._speeches[notice.turn]
        if speech.last_at is not None:
            self.telemetry.token_said(now - speech.last_at)
        stopped = speech.say(notice.token, now, not notice.end, notice.logprobs)
        if stopped or turn.finish is not None:
            self._close(notice.turn, notice.end, stopped)

    def hear(self, notice: Placed | Refused | Stuck) -> None:
        """Tell what else happened to a turn."""
        if isinstance(notice, Refused):
            self._refuse(notice)
        elif isinstance(notice, Placed):
            one = notice.admitted
            self.telemetry.turn_started(one.prompt, one.cached, one.tier, one.miss)
            self._speeches[notice.turn].admit(one)
        else:
            stuck = self.planner.turns[notice.turn].request.id
            log.warning("turn %s: nothing more fits its grammar", stuck)
            self._close(notice.turn)

    def take(self, turn: Turn) -> tuple[Speech, Spans | None]:
        """The turn is over: all that it said, and the spans of its conversation if it closed."""
        speech = self._speeches.pop(turn.number)
        self._count(turn.finish or Finish.FAILED, speech)
        return speech, self._spans.pop(turn.number, None)

    def fail_all(self, error: AgentCacheError) -> None:
        """Nobody will hear more: tell everybody who still waits for something."""
        for speech in self._speeches.values():
            speech.emit(error)
        self._speeches.clear()

    def _refuse(self, notice: Refused) -> None:
        speech = self._speeches.pop(notice.turn)
        if speech.admitted:  # it gave its place up, and waited for another one
            self._count(Finish.CANCELLED, speech)
        speech.emit(notice.error)

    def _close(self, number: int, end: bool = False, stopped: bool = False) -> None:
        """The turn says no more; the last token was its model's `end`, or a stop sequence."""
        turn, speech = self.planner.turns[number], self._speeches[number]
        speech.close()
        said = speech.sampled[:-1] if end else speech.sampled
        spans = self.builder.spans_after(turn.request.prompt, said, speech.text)
        prompt = turn.request.prompt.tokens
        keep = common_prefix(concatenated(spans), len(prompt), said, 0)
        finish = Finish.STOP if stopped or speech.stop is not None else turn.finish or Finish.STOP
        self.planner.finish(number, finish, keep)
        self._spans[number] = spans

    def _count(self, finish: Finish, speech: Speech) -> None:
        first = None if speech.first_at is None else speech.first_at - speech.arrived
        self.telemetry.turn_ended(finish, len(speech.sampled), first)
