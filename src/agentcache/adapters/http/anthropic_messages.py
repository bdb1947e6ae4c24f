"""POST /v1/messages, streaming and not, and /v1/messages/count_tokens."""

from base64 import b64encode
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

import msgspec
from attrs import define, field, frozen
from starlette.requests import Request
from starlette.responses import Response

from agentcache.adapters.http.anthropic_ask import asked, conversation_of, tells_thoughts
from agentcache.adapters.http.anthropic_types import (
    BlockDelta,
    BlockStart,
    BlockStop,
    CacheMissReason,
    ContentBlock,
    CountRequest,
    Diagnostics,
    InputJsonDelta,
    Message,
    MessageDelta,
    MessagesRequest,
    MessageStart,
    MessageStop,
    Ping,
    SignatureDelta,
    Stopped,
    StopReason,
    StreamEvent,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    TokenCount,
    ToolUseBlock,
    Usage,
)
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.http.errors import reported_to_anthropic
from agentcache.adapters.http.hearing import Answer, Likely, heard_out
from agentcache.adapters.http.models import require_model
from agentcache.adapters.http.sse import TEXT, Template, on_one_line
from agentcache.adapters.http.telling import tell
from agentcache.domain.answer import Call, Piece, Text, Thought
from agentcache.domain.events import Admitted, Ended
from agentcache.domain.request import Finish, Miss
from agentcache.service import RunningTurn

_messages = msgspec.json.Decoder(MessagesRequest)
_count = msgspec.json.Decoder(CountRequest)
_encode = msgspec.json.Encoder().encode
_MISSES = {
    Miss.MODEL_CHANGED,
    Miss.CODEC_CHANGED,
    Miss.SYSTEM_CHANGED,
    Miss.TOOLS_CHANGED,
    Miss.MESSAGES_CHANGED,
}


@define(eq=False)
class AnthropicMessages:
    """The messages endpoints."""

    edge: Edge

    async def create(self, request: Request) -> Response:
        """Admission comes first: whatever is refused is refused with a status."""
        body = await self.edge.read(request, _messages)
        require_model(self.edge.service, body.model)
        turn = await self.edge.admit(asked(body, request.headers), request)
        told = _Told(turn, body)
        return await tell(self.edge, told, request, body.stream)

    async def count_tokens(self, request: Request) -> Response:
        """How many tokens the prompt would have, as the model reads it."""
        body = await self.edge.read(request, _count)
        require_model(self.edge.service, body.model)
        count = await self.edge.service.count_tokens(conversation_of(body))
        return Response(_encode(TokenCount(count)), media_type="application/json")


@frozen
class _Told:
    """One turn in Anthropic's words."""

    turn: RunningTurn
    body: MessagesRequest

    async def whole(self) -> Message:
        """The answer when it is complete. Raises TurnFailed or TurnCancelled."""
        answer = await heard_out(self.turn)
        ended = answer.ended
        reason = self.reason(ended, bool(answer.calls))
        return self.message(tuple(self._blocks(answer)), reason, ended.stop, _usage(ended))

    def frames(self) -> "_Events":
        """The answer as it comes."""
        return _Events(self, _Blocks(tells_thoughts(self.body)))

    def _blocks(self, answer: Answer) -> Iterator[ContentBlock]:
        if answer.thought and tells_thoughts(self.body):
            yield ThinkingBlock(answer.thought, _signature(answer.thought))
        if answer.text:
            yield TextBlock(answer.text)
        for call in answer.calls:
            yield ToolUseBlock(call.id, call.name, _parsed(call.arguments))

    def message(
        self,
        content: tuple[ContentBlock, ...],
        reason: StopReason | None,
        stop: str | None,
        usage: Usage,
    ) -> Message:
        """The message as it is by now."""
        name, told = f"msg_{self.turn.id}", self._diagnostics()
        return Message(name, self.body.model, content, reason, stop, usage, diagnostics=told)

    def _diagnostics(self) -> Diagnostics | None:
        admitted = self.turn.admitted
        if self.body.diagnostics is None or admitted.miss is Miss.NONE:
            return None
        kind = admitted.miss.value if admitted.miss in _MISSES else "unavailable"
        if admitted.miss is Miss.NO_SESSION:
            kind = "previous_message_not_found"
        return Diagnostics(CacheMissReason(kind, admitted.prompt - admitted.cached))

    def reason(self, ended: Ended, called: bool) -> StopReason:
        """Why the answer ended."""
        if ended.finish is Finish.LENGTH:
            whole = ended.completion >= self.body.max_tokens
            return "max_tokens" if whole else "model_context_window_exceeded"
        if ended.stop is not None:
            return "stop_sequence"
        return "tool_use" if called else "end_turn"


@define(eq=False)
class _Events:
    """The stream of an answer; see `Frames`."""

    _told: _Told
    _blocks: "_Blocks"

    def begin(self) -> bytes:
        begun = _usage_at_start(self._told.turn.admitted)
        return _frame(MessageStart(self._told.message((), None, None, begun))) + self.pause()

    def more(self, pieces: Sequence[Piece], likely: Likely) -> bytes:
        if len(pieces) == 1 and isinstance(piece := pieces[0], Text) and self._blocks.more_text:
            return self._blocks.more_text.filled(piece.text)  # as nearly always
        return b"".join([_frame(event) for piece in pieces for event in self._blocks.tell(piece)])

    def pause(self) -> bytes:
        return _frame(Ping())

    def end(self, ended: Ended) -> bytes:
        reason = self._told.reason(ended, self._blocks.called)
        closed = b"".join(map(_frame, self._blocks.close()))
        delta = MessageDelta(Stopped(reason, ended.stop), _usage(ended))
        return closed + _frame(delta) + _frame(MessageStop())

    def fail(self, error: Exception) -> bytes:
        return _event("error", reported_to_anthropic(error))


@define(eq=False)
class _Blocks:
    """The content blocks of a stream: one after another, each closed before the next begins.

    `more_text` makes the events of a text that is open.
    """

    thoughts: bool
    more_text: Template | None = field(default=None, init=False)
    called: bool = field(default=False, init=False)
    _index: int = field(default=-1, init=False)
    _open: type[Text] | type[Thought] | None = field(default=None, init=False)
    _thought: str = field(default="", init=False)

    def tell(self, piece: Piece) -> Iterator[StreamEvent]:
        """The events of one more piece."""
        if isinstance(piece, Call):
            yield from self._call(piece)
        elif isinstance(piece, Text):
            yield from self._begin(Text, TextBlock(""))
            yield BlockDelta(self._index, TextDelta(piece.text))
        elif self.thoughts:
            yield from self._begin(Thought, ThinkingBlock("", ""))
            self._thought += piece.text
            yield BlockDelta(self._index, ThinkingDelta(piece.text))

    def close(self) -> Iterator[StreamEvent]:
        """The events that end the block that is open, if one is."""
        if self._open is Thought:
            yield BlockDelta(self._index, SignatureDelta(_signature(self._thought)))
            self._thought = ""
        if self._open is not None:
            yield BlockStop(self._index)
        self._open = self.more_text = None

    def _begin(
        self, kind: type[Text] | type[Thought], block: ContentBlock
    ) -> Iterator[StreamEvent]:
        if self._open is not kind:
            yield from self.close()
            self._index += 1
            self._open = kind
            yield BlockStart(self._index, block)
            if kind is Text:
                self.more_text = Template.of(self._text_frame, TEXT)

    def _text_frame(self, text: str) -> bytes:
        return _frame(BlockDelta(self._index, TextDelta(text)))

    def _call(self, piece: Call) -> Iterator[StreamEvent]:
        yield from self.close()
        self._index += 1
        self.called = True
        call = piece.call
        yield BlockStart(self._index, ToolUseBlock(call.id, call.name, {}))
        yield BlockDelta(self._index, InputJsonDelta(call.arguments))
        yield BlockStop(self._index)


def _frame(event: StreamEvent) -> bytes:
    return _event(str(type(event).__struct_config__.tag), event)


def _event(name: str, value: msgspec.Struct) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + on_one_line(value) + b"\n\n"


def _usage(ended: Ended) -> Usage:
    return Usage(ended.prompt - ended.cached, ended.completion, ended.cached)


def _usage_at_start(admitted: Admitted) -> Usage:
    return Usage(admitted.prompt - admitted.cached, 0, admitted.cached)


def _signature(thought: str) -> str:
    return b64encode(blake2b(thought.encode("utf-8", "replace"), digest_size=24).digest()).decode()


def _parsed(arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(arguments)
    return found
