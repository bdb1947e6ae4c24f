"""/v1/responses: made, streamed or whole, looked up and deleted."""

import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from itertools import count

import msgspec
from attrs import define, field, frozen
from starlette.requests import Request
from starlette.responses import Response as HttpResponse

from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.errors import reported
from agentcache.adapters.http.gate import access_of
from agentcache.adapters.http.hearing import Heard, hear, heard_out
from agentcache.adapters.http.models import require_model
from agentcache.adapters.http.response_items import Items, output_of
from agentcache.adapters.http.responses_ask import asked
from agentcache.adapters.http.responses_types import (
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
    StreamEvent,
    Usage,
)
from agentcache.adapters.http.sse import on_one_line
from agentcache.adapters.http.telling import tell
from agentcache.domain.answer import Text
from agentcache.domain.conversation import Message
from agentcache.domain.events import Ended
from agentcache.domain.request import Finish
from agentcache.service import RunningTurn

_decoder = msgspec.json.Decoder(ResponsesRequest)
_encode = msgspec.json.Encoder().encode
PREFIX = "resp_"


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
        told = _Told(turn, body, self.edge.service.piece)
        return await tell(self.edge, told, request, body.stream)

    async def one(self, request: Request) -> HttpResponse:
        """A stored response by its id, or its deletion."""
        name = request.path_params["id"]
        tenant = access_of(request.scope).tenant
        turn = name.removeprefix(PREFIX)
        if request.method == "DELETE":
            await self.edge.service.forget_answer(tenant, turn)
            return _json(Deleted(name))
        messages = self.edge.service.answer(tenant, turn)
        model = self.edge.service.model.name
        output = output_of(turn, messages[-1])
        return _json(Response(name, 0, model, "completed", output))

    def _before(self, request: Request, body: ResponsesRequest) -> tuple[Message, ...]:
        if body.previous_response_id is None:
            return ()
        turn = body.previous_response_id.removeprefix(PREFIX)
        return self.edge.service.answer(access_of(request.scope).tenant, turn)


@frozen
class _Told:
    """One turn in the words of this dialect."""

    turn: RunningTurn
    body: ResponsesRequest
    piece: Callable[[int], bytes]
    created: int = field(factory=lambda: int(time.time()), init=False)

    async def whole(self) -> Response:
        """The response when it is complete. Raises TurnFailed or TurnCancelled."""
        answer = await heard_out(self.turn)
        items, likely = Items(self.turn.id, self.piece), answer.likely
        for piece in answer.pieces:
            said = likely if isinstance(piece, Text) else ()
            deque(items.tell(piece, said), maxlen=0)
            likely = () if said else likely
        deque(items.close(), maxlen=0)
        return self._done(answer.ended, items)

    async def frames(self, keep_alive: float) -> AsyncGenerator[bytes]:
        """The response as it comes. The status is long sent when an error comes: it is an event."""
        numbers = count()
        items = Items(self.turn.id, self.piece, numbers)
        begun = self._response("in_progress", ())
        yield _frame(ResponseEvent("response.created", next(numbers), begun))
        yield _frame(ResponseEvent("response.in_progress", next(numbers), begun))
        try:
            async with aclosing(hear(self.turn, keep_alive)) as heard:
                async for event in heard:
                    for told in self._events_of(event, items, numbers, begun):
                        yield _frame(told)
        except Exception as error:
            problem = reported(error).error
            code = problem.code or problem.type
            yield _frame(ErrorEvent(next(numbers), problem.message, code, problem.param))

    def _events_of(
        self, event: Heard | Ended | None, items: Items, numbers: Iterator[int], begun: Response
    ) -> Iterator[StreamEvent]:
        if event is None:  # clients' timers are reset by events alone, not by comments
            yield ResponseEvent("response.in_progress", next(numbers), begun)
        elif isinstance(event, Heard):
            likely = event.likely
            for piece in event.pieces:
                yield from items.tell(piece, likely)
                likely = ()
        else:
            yield from items.close()
            done = self._done(event, items)
            yield ResponseEvent(f"response.{done.status}", next(numbers), done)

    def _done(self, ended: Ended, items: Items) -> Response:
        cut = ended.finish is Finish.LENGTH
        return self._response(
            "incomplete" if cut else "completed", items.done, _usage(ended, items)
        )

    def _response(
        self, status: ResponseStatus, output: tuple[OutputItem, ...], usage: Usage | None = None
    ) -> Response:
        body = self.body
        return Response(
            id=PREFIX + self.turn.id,
            created_at=self.created,
            model=body.model,
            status=status,
            output=output,
            usage=usage,
            incomplete_details=(
                IncompleteDetails("max_output_tokens") if status == "incomplete" else None
            ),
            instructions=body.instructions,
            previous_response_id=body.previous_response_id,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            tool_choice=body.tool_choice or "auto",
            tools=tuple(body.tools or ()),
            temperature=body.temperature,
            top_p=body.top_p,
            max_output_tokens=body.max_output_tokens,
            metadata=body.metadata or {},
            store=body.store is not False,
            completed_at=None if status == "in_progress" else int(time.time()),
        )


def _usage(ended: Ended, items: Items) -> Usage:
    """How many tokens were thoughts is told by their share of the characters."""
    size = len(items.thought) + len(items.text)
    thoughts = round(ended.completion * len(items.thought) / size) if size else 0
    return Usage(
        ended.prompt,
        InputDetails(ended.cached),
        ended.completion,
        OutputDetails(thoughts),
        ended.prompt + ended.completion,
    )


def _frame(event: StreamEvent) -> bytes:
    return b"event: " + event.type.encode() + b"\ndata: " + on_one_line(event) + b"\n\n"


def _json(value: msgspec.Struct, headers: dict[str, str] | None = None) -> HttpResponse:
    return HttpResponse(_encode(value), 200, headers, "application/json")
