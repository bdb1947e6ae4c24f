"""POST /v1/completions: raw text goes on, streaming and not."""

import time
from collections.abc import Callable, Sequence
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
from agentcache.adapters.http.hearing import Likely, heard_out
from agentcache.adapters.http.models import require_model
from agentcache.adapters.http.openai_chat import usage_of
from agentcache.adapters.http.openai_types import Usage
from agentcache.adapters.http.sse import DONE, KEEP_ALIVE, data
from agentcache.adapters.http.telling import tell
from agentcache.domain.answer import Piece, Text
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
        prompt = _spelled(ask.conversation.text or "", piece)
        echo, behind = (prompt if body.echo else ""), len(prompt)
        told = _Told(turn, body.model, fingerprint, usage, piece, echo, behind)
        return await tell(self.edge, told, request, body.stream)


def _spelled(prompt: str | tuple[int, ...], piece: Callable[[int], bytes]) -> str:
    if isinstance(prompt, str):
        return prompt
    return b"".join(map(piece, prompt)).decode(errors="replace")


@frozen
class _Told:
    """One turn in this dialect, after `echo`. `usage` says whether a stream shall end with it.

    Offsets of tokens count from the beginning of the prompt, which has `behind` characters, whether
    it is echoed or not.
    """

    turn: RunningTurn
    model: str
    fingerprint: str
    usage: bool
    piece: Callable[[int], bytes]
    echo: str
    behind: int
    created: int = field(factory=lambda: int(time.time()), init=False)

    async def whole(self) -> Completion:
        """The text when it is complete. Raises TurnFailed or TurnCancelled."""
        answer = await heard_out(self.turn)
        likely = _logprobs(answer.likely, self.piece, self.behind)
        choice = CompletionChoice(
            self.echo + answer.text, _finish_reason(answer.ended), logprobs=likely
        )
        return self._completion((choice,), usage_of(answer.ended))

    def frames(self) -> "_Parts":
        """The text as it comes."""
        return _Parts(self, self.behind)

    def part(self, *choices: CompletionChoice, usage: Usage | None = None) -> bytes:
        """A part of the stream."""
        return data(self._completion(choices, usage if self.usage else msgspec.UNSET))

    def _completion(
        self, choices: tuple[CompletionChoice, ...], usage: Usage | msgspec.UnsetType | None
    ) -> Completion:
        name = f"cmpl-{self.turn.id}"
        return Completion(name, self.created, self.model, self.fingerprint, choices, usage)


@define(eq=False)
class _Parts:
    """The stream of a text; see `Frames`. `_offset` is where its next tokens begin."""

    _told: _Told
    _offset: int

    def begin(self) -> bytes:
        return self._told.part(CompletionChoice(self._told.echo)) if self._told.echo else b""

    def more(self, pieces: Sequence[Piece], likely: Likely) -> bytes:
        said = _logprobs(likely, self._told.piece, self._offset)
        self._offset += sum(map(len, said.tokens)) if said else 0
        text = "".join(piece.text for piece in pieces if isinstance(piece, Text))
        return self._told.part(CompletionChoice(text, logprobs=said))

    def pause(self) -> bytes:
        return KEEP_ALIVE

    def end(self, ended: Ended) -> bytes:
        last = self._told.part(CompletionChoice("", _finish_reason(ended)))
        if self._told.usage:
            last += self._told.part(usage=usage_of(ended))
        return last + DONE

    def fail(self, error: Exception) -> bytes:
        return data(reported(error))


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
