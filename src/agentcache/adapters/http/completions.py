"""POST /v1/completions: raw text goes on, streaming and not."""

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from itertools import accumulate

import msgspec
from attrs import define, field, frozen
from starlette.requests import Request
from starlette.responses import Response

from agentcache.adapters.http.completion_ask import asked
from agentcache.adapters.http.completion_types import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    Finished,
)
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.errors import reported
from agentcache.adapters.http.hearing import Heard, Likely, hear, heard_out
from agentcache.adapters.http.models import require_model
from agentcache.adapters.http.openai_chat import usage_of
from agentcache.adapters.http.openai_types import Usage
from agentcache.adapters.http.sse import DONE, KEEP_ALIVE, data
from agentcache.adapters.http.telling import tell
from agentcache.domain.answer import Text
from agentcache.domain.events import Ended
from agentcache.domain.request import Finish
from agentcache.service import RunningTurn

_decoder = msgspec.json.Decoder(CompletionRequest)


@define(eq=False)
class Completions:
    """The completions endpoint."""

    edge: Edge

    async def create(self, request: Request) -> Response:
        """Admission comes first: whatever is refused is refused with a status."""
        body = await self.edge.read(request, _decoder)
        require_model(self.edge.service, body.model)
        ask = asked(body, request.headers)
        fingerprint = self.edge.service.model.digest.hex()[:16]
        turn = await self.edge.admit(ask, request)
        piece = self.edge.service.piece
        usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        echo = _spelled(ask.conversation.text or "", piece) if body.echo else ""
        told = _Told(turn, body.model, fingerprint, usage, piece, echo)
        return await tell(self.edge, told, request, body.stream)


def _spelled(prompt: str | tuple[int, ...], piece: Callable[[int], bytes]) -> str:
    if isinstance(prompt, str):
        return prompt
    return b"".join(map(piece, prompt)).decode(errors="replace")


@frozen
class _Told:
    """One turn in this dialect, after `echo`. `usage` says whether a stream shall end with it."""

    turn: RunningTurn
    model: str
    fingerprint: str
    usage: bool
    piece: Callable[[int], bytes]
    echo: str
    created: int = field(factory=lambda: int(time.time()), init=False)

    async def whole(self) -> Completion:
        """The text when it is complete. Raises TurnFailed or TurnCancelled."""
        answer = await heard_out(self.turn)
        likely = _logprobs(answer.likely, self.piece, 0)
        choice = CompletionChoice(
            self.echo + answer.text, _finish_reason(answer.ended), logprobs=likely
        )
        return self._completion((choice,), usage_of(answer.ended))

    async def frames(self, keep_alive: float) -> AsyncGenerator[bytes]:
        """The text as it comes. The status is long sent when an error comes: it is a frame."""
        offset = 0
        if self.echo:
            yield self._frame(CompletionChoice(self.echo))
        try:
            async with aclosing(hear(self.turn, keep_alive)) as heard:
                async for event in heard:
                    if event is None:
                        yield KEEP_ALIVE
                    elif isinstance(event, Heard):
                        likely = _logprobs(event.likely, self.piece, offset)
                        offset += sum(map(len, likely.tokens)) if likely else 0
                        yield self._frame(CompletionChoice(_text(event), logprobs=likely))
                    else:
                        for frame in self._last_frames(event):
                            yield frame
        except Exception as error:
            yield data(reported(error))

    def _last_frames(self, ended: Ended) -> Iterator[bytes]:
        yield self._frame(CompletionChoice("", _finish_reason(ended)))
        if self.usage:
            yield self._frame(usage=usage_of(ended))
        yield DONE

    def _frame(self, *choices: CompletionChoice, usage: Usage | None = None) -> bytes:
        return data(self._completion(choices, usage if self.usage else msgspec.UNSET))

    def _completion(
        self, choices: tuple[CompletionChoice, ...], usage: Usage | msgspec.UnsetType | None
    ) -> Completion:
        name = f"cmpl-{self.turn.id}"
        return Completion(name, self.created, self.model, self.fingerprint, choices, usage)


def _text(heard: Heard) -> str:
    return "".join(piece.text for piece in heard.pieces if isinstance(piece, Text))


def _finish_reason(ended: Ended) -> Finished:
    return "length" if ended.finish is Finish.LENGTH else "stop"


def _logprobs(
    likely: Likely, piece: Callable[[int], bytes], offset: int
) -> CompletionLogprobs | None:
    """How likely tokens were that begin at the character `offset`."""
    if not likely:
        return None

    def spelled(token: int) -> str:
        return piece(token).decode(errors="replace")

    said = tuple(spelled(token) for token, _ in likely)
    return CompletionLogprobs(
        said,
        tuple(how.chosen for _, how in likely),
        tuple({spelled(token): logprob for token, logprob in how.top} for _, how in likely),
        tuple(accumulate(map(len, said[:-1]), initial=offset)),
    )
