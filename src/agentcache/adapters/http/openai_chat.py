"""POST /v1/chat/completions, streaming and not."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from attrs import define, field, frozen
from starlette.requests import Request
from starlette.responses import Response

from agentcache.adapters.http.body import read_json
from agentcache.adapters.http.connection import while_connected
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.errors import reported
from agentcache.adapters.http.identity import as_header
from agentcache.adapters.http.models import require_model
from agentcache.adapters.http.openai_ask import asked
from agentcache.adapters.http.openai_types import (
    AnswerMessage,
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    Choice,
    ChunkChoice,
    DeltaMessage,
    FinishReason,
    PromptDetails,
    Usage,
)
from agentcache.adapters.http.sse import DONE, KEEP_ALIVE, TurnStream, data, events_or_pauses
from agentcache.domain.errors import TurnCancelled, TurnFailed
from agentcache.domain.events import Admitted, Delta, Ended
from agentcache.domain.request import Finish, Miss
from agentcache.service import RunningTurn

_decoder = msgspec.json.Decoder(ChatRequest)


@define(eq=False)
class OpenAIChat:
    """The chat completions endpoint."""

    edge: Edge

    async def create(self, request: Request) -> Response:
        """Admission comes first: whatever is refused is refused with a status."""
        body = await read_json(request, _decoder, self.edge.max_body)
        require_model(self.edge.service, body.model)
        ask = asked(body, request.headers)
        fingerprint = self.edge.service.model.digest.hex()[:16]
        turn = await self.edge.admit(ask, request)
        usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        answer = _Answer(turn, body.model, fingerprint, usage)
        if body.stream:
            frames = answer.frames(self.edge.keep_alive)
            return TurnStream(self.edge, turn, frames, cache_headers(turn.admitted))
        return await self._whole(answer, request)

    async def _whole(self, answer: "_Answer", request: Request) -> Response:
        try:
            async with while_connected(request.receive):
                completion = await answer.whole()
        finally:
            await self.edge.end(answer.turn)
        headers = cache_headers(answer.turn.admitted)
        return Response(msgspec.json.encode(completion), 200, headers, "application/json")


def cache_headers(admitted: Admitted) -> dict[str, str]:
    """What the cache did for a turn, on every answer of every dialect."""
    headers = {
        "x-agentcache-cached-tokens": str(admitted.cached),
        "x-agentcache-tier": admitted.tier.value,
    }
    if admitted.miss is not Miss.NONE:
        headers["x-agentcache-miss"] = admitted.miss.value
    if admitted.agent is not None:
        headers["x-agentcache-agent"] = as_header(admitted.agent)
    return headers


@frozen
class _Answer:
    """One turn in OpenAI's words. `usage` says whether a stream shall end with it."""

    turn: RunningTurn
    model: str
    fingerprint: str
    usage: bool
    created: int = field(factory=lambda: int(time.time()), init=False)

    async def whole(self) -> ChatCompletion:
        """The answer when it is complete. Raises TurnFailed or TurnCancelled."""
        pieces: list[str] = []
        ended: Ended | None = None
        async for event in self.turn:
            if isinstance(event, Delta):
                pieces.append(event.text)
            else:
                ended = event
        if ended is None:
            raise TurnCancelled
        choice = Choice(AnswerMessage("".join(pieces)), _finish_reason(ended))
        return ChatCompletion(
            self._id, self.created, self.model, self.fingerprint, (choice,), _usage(ended)
        )

    async def frames(self, keep_alive: float) -> AsyncGenerator[bytes]:
        """The answer as it comes. The status is long sent when an error comes: it is a frame."""
        yield self._chunk(ChunkChoice(DeltaMessage(role="assistant", content="")))
        event: Delta | Ended | None = None
        try:
            async with aclosing(events_or_pauses(self.turn, keep_alive)) as events:
                async for event in events:
                    for frame in self._frames_of(event):
                        yield frame
            if not isinstance(event, Ended):
                raise TurnCancelled
        except Exception as error:
            yield data(reported(error))

    def _frames_of(self, event: Delta | Ended | None) -> tuple[bytes, ...]:
        if event is None:
            return (KEEP_ALIVE,)
        if isinstance(event, Delta):
            chunk = self._chunk(ChunkChoice(DeltaMessage(content=event.text)))
            return (chunk,) if event.text else ()
        last = self._chunk(ChunkChoice(DeltaMessage(), _finish_reason(event)))
        usage = (self._chunk(usage=_usage(event)),) if self.usage else ()
        return (last, *usage, DONE)

    def _chunk(self, *choices: ChunkChoice, usage: Usage | None = None) -> bytes:
        told = usage if self.usage else msgspec.UNSET
        return data(ChatChunk(self._id, self.created, self.model, self.fingerprint, choices, told))

    @property
    def _id(self) -> str:
        return f"chatcmpl-{self.turn.id}"


def _finish_reason(ended: Ended) -> FinishReason:
    if ended.finish is Finish.FAILED:
        raise TurnFailed(ended.problem or "the engine could not go on")
    if ended.finish is Finish.CANCELLED:
        raise TurnCancelled(ended.problem or "cancelled")
    return "stop" if ended.finish is Finish.STOP else "length"


def _usage(ended: Ended) -> Usage:
    return Usage(
        ended.prompt,
        ended.completion,
        ended.prompt + ended.completion,
        PromptDetails(ended.cached),
    )
