"""POST /v1/chat/completions, streaming and not."""

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing

import msgspec
from attrs import define, field, frozen
from starlette.requests import Request
from starlette.responses import Response

from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.errors import reported
from agentcache.adapters.http.hearing import Heard, Likely, hear, heard_out
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
from agentcache.adapters.http.sse import DONE, KEEP_ALIVE, data
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

    async def whole(self) -> ChatCompletion:
        """The answer when it is complete. Raises TurnFailed or TurnCancelled."""
        answer = await heard_out(self.turn)
        calls = tuple(AnsweredCall(one.id, _function(one)) for one in answer.calls)
        message = AnswerMessage(
            answer.text if answer.text or not calls else None,
            tool_calls=calls or msgspec.UNSET,
            reasoning_content=answer.thought or msgspec.UNSET,
        )
        likely = self._logprobs(answer.likely)
        choice = Choice(message, finish_reason(answer.ended, bool(calls)), logprobs=likely)
        return ChatCompletion(
            self._id, self.created, self.model, self.fingerprint, (choice,), usage_of(answer.ended)
        )

    async def frames(self, keep_alive: float) -> AsyncGenerator[bytes]:
        """The answer as it comes. The status is long sent when an error comes: it is a frame."""
        yield self._chunk(ChunkChoice(DeltaMessage(role="assistant", content="")))
        called = False
        try:
            async with aclosing(hear(self.turn, keep_alive)) as heard:
                async for event in heard:
                    if event is None:
                        yield KEEP_ALIVE
                    elif isinstance(event, Heard):
                        called = called or any(isinstance(one, Call) for one in event.pieces)
                        for frame in self._frames_of(event):
                            yield frame
                    else:
                        for frame in self._last_frames(event, called):
                            yield frame
        except Exception as error:
            yield data(reported(error))

    def _frames_of(self, heard: Heard) -> Iterator[bytes]:
        """A chunk for each piece; log-probabilities come with the first one."""
        likely = self._logprobs(heard.likely)
        deltas = [_delta(piece) for piece in heard.pieces] or [DeltaMessage(content="")]
        for delta in deltas:
            yield self._chunk(ChunkChoice(delta, logprobs=likely))
            likely = None

    def _last_frames(self, ended: Ended, called: bool) -> Iterator[bytes]:
        yield self._chunk(ChunkChoice(DeltaMessage(), finish_reason(ended, called)))
        if self.usage:
            yield self._chunk(usage=usage_of(ended))
        yield DONE

    def _chunk(self, *choices: ChunkChoice, usage: Usage | None = None) -> bytes:
        told = usage if self.usage else msgspec.UNSET
        return data(ChatChunk(self._id, self.created, self.model, self.fingerprint, choices, told))

    def _logprobs(self, likely: Likely) -> ChoiceLogprobs | None:
        if not likely:
            return None
        return ChoiceLogprobs(said_tokens(likely, self.piece))

    @property
    def _id(self) -> str:
        return f"chatcmpl-{self.turn.id}"


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
