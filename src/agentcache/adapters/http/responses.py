"""/v1/responses: made, streamed or whole, looked up and deleted."""

import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec
from attrs import define, field, frozen
from msgspec import structs
from starlette.requests import Request
from starlette.responses import Response as HttpResponse

from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.errors import reported
from agentcache.adapters.http.gate import access_of
from agentcache.adapters.http.hearing import Likely, heard_out
from agentcache.adapters.http.models import require_model
from agentcache.adapters.http.response_items import Items, frame, frames, item_status, output_of
from agentcache.adapters.http.responses_ask import asked
from agentcache.adapters.http.responses_note import asked_of, recalled
from agentcache.adapters.http.responses_types import (
    Asked,
    Deleted,
    ErrorEvent,
    IncompleteDetails,
    InputDetails,
    OutputDetails,
    OutputItem,
    Response,
    ResponseEvent,
    ResponsesRequest,
    ResponseStatus,
    Usage,
)
from agentcache.adapters.http.telling import tell
from agentcache.adapters.http.wishes import with_wishes
from agentcache.agent_view import StoredAnswer
from agentcache.domain.answer import Piece, Text
from agentcache.domain.conversation import Message, Outcome
from agentcache.domain.events import Ended
from agentcache.domain.request import Finish
from agentcache.service import RunningTurn

_decoder = msgspec.json.Decoder(ResponsesRequest)
_encode = msgspec.json.Encoder().encode
PREFIX = "resp_"
_STATUS: dict[Finish, ResponseStatus] = {
    Finish.STOP: "completed",
    Finish.LENGTH: "incomplete",
    Finish.CANCELLED: "cancelled",
    Finish.FAILED: "failed",
}


@define(eq=False)
class Responses:
    """The responses endpoints. A response that is stored is the answer of some session."""

    edge: Edge

    async def create(self, request: Request) -> HttpResponse:
        """Admission comes first: whatever is refused is refused with a status."""
        body = await self.edge.read(request, _decoder)
        require_model(self.edge.service, body.model)
        ask = asked(body, self._before(request, body), request.headers)
        turn = await self.edge.admit(ask, request)
        stored = ask.findable and with_wishes(ask, request.headers).store
        told = _Told(turn, body, asked_of(body), stored, self.edge.service.piece)
        return await tell(self.edge, told, request, body.stream)

    async def one(self, request: Request) -> HttpResponse:
        """A stored response by its id, or its deletion."""
        name = request.path_params["id"]
        tenant = access_of(request.scope).tenant
        turn = name.removeprefix(PREFIX)
        if request.method == "DELETE":
            await self.edge.service.forget_answer(tenant, turn)
            return _json(Deleted(name))
        answer = self.edge.service.answer(tenant, turn)
        return _json(_stored(name, self.edge.service.model.name, answer))

    def _before(self, request: Request, body: ResponsesRequest) -> tuple[Message, ...]:
        if body.previous_response_id is None:
            return ()
        turn = body.previous_response_id.removeprefix(PREFIX)
        return self.edge.service.answer(access_of(request.scope).tenant, turn).messages


@frozen
class _Told:
    """One turn in the words of this dialect."""

    turn: RunningTurn
    body: ResponsesRequest
    asked: Asked
    stored: bool
    piece: Callable[[int], bytes]

    async def whole(self) -> Response:
        """The response when it is complete. Raises TurnFailed or TurnCancelled."""
        answer = await heard_out(self.turn)
        items, likely = Items(self.turn.id, self.piece), answer.likely
        for piece in answer.pieces:
            said = likely if isinstance(piece, Text) else ()
            deque(items.tell(piece, said), maxlen=0)
            likely = () if said else likely
        deque(items.close(item_status(answer.ended.finish)), maxlen=0)
        return self.done(answer.ended, items)

    def frames(self) -> "_Events":
        """The response as it comes."""
        return _Events(self)

    def done(self, ended: Ended, items: Items) -> Response:
        """The response at its end."""
        usage = _usage(ended, items.thought, items.text)
        return self.response(_STATUS[ended.finish], items.done, usage)

    def response(
        self, status: ResponseStatus, output: tuple[OutputItem, ...], usage: Usage | None = None
    ) -> Response:
        """The response as it is by now."""
        return Response(
            **structs.asdict(self.asked),
            id=PREFIX + self.turn.id,
            created_at=int(self.turn.asked),
            model=self.body.model,
            status=status,
            output=output,
            usage=usage,
            incomplete_details=_details(status),
            store=self.stored,
            completed_at=None if status == "in_progress" else int(time.time()),
        )


@define(eq=False)
class _Events:
    """The stream of a response; see `Frames`. Its events are numbered."""

    _told: _Told
    _begun: Response = field(init=False)
    _items: Items = field(init=False)

    @_begun.default
    def _as_it_begins(self) -> Response:
        return self._told.response("in_progress", ())

    @_items.default
    def _no_items(self) -> Items:
        return Items(self._told.turn.id, self._told.piece)

    def begin(self) -> bytes:
        return frame(self._event("response.created", self._begun)) + self.pause()

    def more(self, pieces: Sequence[Piece], likely: Likely) -> bytes:
        return self._items.more(pieces, likely)

    def pause(self) -> bytes:
        """Clients' timers are reset by events alone, not by comments."""
        return frame(self._event("response.in_progress", self._begun))

    def end(self, ended: Ended) -> bytes:
        closed = frames(self._items.close(item_status(ended.finish)))
        done = self._told.done(ended, self._items)
        return closed + frame(self._event(f"response.{done.status}", done))

    def fail(self, error: Exception) -> bytes:
        problem = reported(error).error
        code = problem.code or problem.type
        number = next(self._items.numbers)
        return frame(ErrorEvent(number, problem.message, code, problem.param))

    def _event(self, kind: str, response: Response) -> ResponseEvent:
        return ResponseEvent(kind, next(self._items.numbers), response)


def _stored(name: str, model: str, answer: StoredAnswer) -> Response:
    """What is known of a response that was made before.

    Of one that was stored without its outcome that is when its conversation began, and no more.
    """
    said = answer.message
    output, outcome = output_of(said.turn or "", said), said.outcome
    if outcome is None:
        created = int(answer.created)
        return Response(id=name, created_at=created, model=model, status=None, output=output)
    status = _STATUS[Finish(outcome.finish)]
    return Response(
        **structs.asdict(recalled(said.note)),
        id=name,
        created_at=int(outcome.asked),
        model=model,
        status=status,
        output=output,
        usage=_usage(outcome, said.thought, said.content),
        incomplete_details=_details(status),
        completed_at=int(outcome.ended),
    )


def _details(status: ResponseStatus) -> IncompleteDetails | None:
    return IncompleteDetails("max_output_tokens") if status == "incomplete" else None


def _usage(turn: Ended | Outcome, thought: str, text: str) -> Usage:
    """How many tokens were thoughts is told by their share of the characters."""
    size = len(thought) + len(text)
    thoughts = round(turn.completion * len(thought) / size) if size else 0
    return Usage(
        turn.prompt,
        InputDetails(turn.cached),
        turn.completion,
        OutputDetails(thoughts),
        turn.prompt + turn.completion,
    )


def _json(value: msgspec.Struct, headers: dict[str, str] | None = None) -> HttpResponse:
    return HttpResponse(_encode(value), 200, headers, "application/json")
