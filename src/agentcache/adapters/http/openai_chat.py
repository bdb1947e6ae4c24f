"""POST /v1/chat/completions, streaming and not."""

import time
from collections.abc import Callable, Sequence

import msgspec
from attrs import define, field, frozen
from starlette.requests import Request
from starlette.responses import Response

from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.errors import reported
from agentcache.adapters.http.hearing import Likely, heard_out
from agentcache.adapters.http.likely import said_tokens
from agentcache.adapters.http.models import require_model
from agentcache.adapters.http.openai_ask import asked
from agentcache.adapters.http.openai_types import (
    AnsweredCall,
    AnswerMessage,
    CalledFunction,
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    DeltaCall,
    DeltaMessage,
    FinishReason,
    PromptDetails,
    Usage,
)
from agentcache.adapters.http.sse import DONE, KEEP_ALIVE, TEXT, Template, data
from agentcache.adapters.http.telling import tell
from agentcache.domain.answer import Call, Piece, Text, Thought
from agentcache.domain.conversation import ToolCall
from agentcache.domain.events import Ended
from agentcache.domain.request import Finish
from agentcache.service import RunningTurn

_decoder = msgspec.json.Decoder(ChatRequest)


@define(eq=False)
class OpenAIChat:
    """The chat completions endpoint."""

    edge: Edge

    async def create(self, request: Request) -> Response:
        """Admission comes first: whatever is refused is refused with a status."""
        body = await self.edge.read(request, _decoder)
        require_model(self.edge.service, body.model)
        ask = asked(body, request.headers)
        fingerprint = self.edge.service.model.digest.hex()[:16]
        turn = await self.edge.admit(ask, request)
        usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        answer = _Answer(turn, body.model, fingerprint, usage, self.edge.service.piece)
        return await tell(self.edge, answer, request, body.stream)


@frozen
class _Answer:
    """One turn in OpenAI's words. `usage` says whether a stream shall end with it."""

    turn: RunningTurn
    model: str
    fingerprint: str
    usage: bool
    piece: Callable[[int], bytes]
    created: int = field(factory=lambda: int(time.time()), init=False)
    id: str = field(init=False)

    @id.default
    def _id_of_the_turn(self) -> str:
        return f"chatcmpl-{self.turn.id}"

    async def whole(self) -> ChatCompletion:
        """The answer when it is complete. Raises TurnFailed or TurnCancelled."""
        answer = await heard_out(self.turn)
        calls = tuple(AnsweredCall(one.id, _function(one)) for one in answer.calls)
        message = AnswerMessage(
            answer.text if answer.text or not calls else None,
            tool_calls=calls or msgspec.UNSET,
            reasoning_content=answer.thought or msgspec.UNSET,
        )
        likely = self.logprobs(answer.likely)
        choice = Choice(message, finish_reason(answer.ended, bool(calls)), logprobs=likely)
        return ChatCompletion(
            self.id, self.created, self.model, self.fingerprint, (choice,), usage_of(answer.ended)
        )

    def frames(self) -> "_Chunks":
        """The answer as it comes."""
        return _Chunks(self)

    def chunk(self, *choices: ChunkChoice, usage: Usage | None = None) -> bytes:
        """A part of the stream."""
        told = usage if self.usage else msgspec.UNSET
        return data(ChatChunk(self.id, self.created, self.model, self.fingerprint, choices, told))

    def logprobs(self, likely: Likely) -> ChoiceLogprobs | None:
        """How likely tokens were, if that was asked for."""
        return ChoiceLogprobs(said_tokens(likely, self.piece)) if likely else None


@define(eq=False)
class _Chunks:
    """The stream of an answer; see `Frames`."""

    _answer: _Answer
    _called: bool = False
    _said: Template = field(init=False)

    @_said.default
    def _more_text(self) -> Template:
        return Template.of(lambda text: self._answer.chunk(ChunkChoice(_delta(Text(text)))), TEXT)

    def begin(self) -> bytes:
        return self._answer.chunk(ChunkChoice(DeltaMessage(role="assistant", content="")))

    def more(self, pieces: Sequence[Piece], likely: Likely) -> bytes:
        """A chunk for each piece; log-probabilities come with the first one."""
        if not likely and len(pieces) == 1 and isinstance(pieces[0], Text):  # as nearly always
            return self._said.filled(pieces[0].text)
        chunks, told = b"", self._answer.logprobs(likely)
        for piece in pieces or (Text(""),):
            self._called = self._called or isinstance(piece, Call)
            chunks += self._answer.chunk(ChunkChoice(_delta(piece), logprobs=told))
            told = None
        return chunks

    def pause(self) -> bytes:
        return KEEP_ALIVE

    def end(self, ended: Ended) -> bytes:
        reason = finish_reason(ended, self._called)
        last = self._answer.chunk(ChunkChoice(DeltaMessage(), reason))
        if self._answer.usage:
            last += self._answer.chunk(usage=usage_of(ended))
        return last + DONE

    def fail(self, error: Exception) -> bytes:
        return data(reported(error))


def _delta(piece: Piece) -> DeltaMessage:
    if isinstance(piece, Text):
        return DeltaMessage(content=piece.text)
    if isinstance(piece, Thought):
        return DeltaMessage(reasoning_content=piece.text)
    call = DeltaCall(piece.index, _function(piece.call), piece.call.id)
    return DeltaMessage(tool_calls=(call,))


def _function(call: ToolCall) -> CalledFunction:
    return CalledFunction(call.name, call.arguments)


def finish_reason(ended: Ended, called: bool) -> FinishReason:
    """Why the answer ended."""
    if ended.finish is Finish.LENGTH:
        return "length"
    return "tool_calls" if called else "stop"


def usage_of(ended: Ended) -> Usage:
    """What the turn took."""
    return Usage(
        ended.prompt,
        ended.completion,
        ended.prompt + ended.completion,
        PromptDetails(ended.cached),
    )
