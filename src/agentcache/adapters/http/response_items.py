"""The output of a response: items one after another, each done before the next one begins."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import count

from attrs import define, field

from agentcache.adapters.http.hearing import Likely
from agentcache.adapters.http.likely import SaidToken, said_tokens
from agentcache.adapters.http.responses_types import (
    ArgumentsDelta,
    ArgumentsDone,
    DeltaEvent,
    FunctionCall,
    ItemEvent,
    OutputItem,
    OutputMessage,
    OutputText,
    Part,
    PartEvent,
    ReasoningItem,
    ReasoningText,
    Status,
    StreamEvent,
    TextDone,
)
from agentcache.adapters.http.sse import NUMBER, TEXT, Template, on_one_line
from agentcache.domain.answer import Call, Piece, Text, Thought
from agentcache.domain.conversation import Message
from agentcache.domain.request import Finish


def frame(event: StreamEvent) -> bytes:
    """`event` as it is sent."""
    return b"event: " + event.type.encode() + b"\ndata: " + on_one_line(event) + b"\n\n"


def frames(events: Iterable[StreamEvent]) -> bytes:
    """All `events` as they are sent."""
    return b"".join(map(frame, events))


@define(eq=False)
class Items:
    """Turns pieces of the answer of turn `turn` into events, and remembers the items so far.

    `numbers` are those of the stream's events, `piece` spells a token.
    """

    turn: str
    piece: Callable[[int], bytes]
    numbers: Iterator[int] = field(factory=count)
    done: tuple[OutputItem, ...] = field(default=(), init=False)
    text: str = field(default="", init=False)
    thought: str = field(default="", init=False)
    _open: str = field(default="", init=False)  # "text", "thought" or nothing
    _said: str = field(default="", init=False)
    _likely: tuple[SaidToken, ...] = field(default=(), init=False)
    _more_text: Template | None = field(default=None, init=False)  # of the text that is open

    def more(self, pieces: Sequence[Piece], likely: Likely) -> bytes:
        """The events of what came since the last time, as they are sent."""
        piece = pieces[0] if len(pieces) == 1 and not likely else None
        if isinstance(piece, Text) and self._more_text is not None:  # as nearly always
            self._said += piece.text
            return self._more_text.filled(next(self.numbers), piece.text)
        told = b""
        for piece in pieces:
            told += frames(self.tell(piece, likely))
            likely = ()
        return told

    def tell(self, piece: Piece, likely: Likely) -> Iterator[StreamEvent]:
        """The events of one more piece."""
        if isinstance(piece, Call):
            yield from self.close()
            yield from self._call(piece)
            return
        kind = "text" if isinstance(piece, Text) else "thought"
        if self._open != kind:
            yield from self.close()
            yield from self._begin(kind)
        self._said += piece.text
        yield self._delta(piece.text, said_tokens(likely, self.piece))

    def close(self, status: Status = "completed") -> Iterator[StreamEvent]:
        """The events that end the item that is open, if one is; `incomplete` where it was cut."""
        if not self._open:
            return
        name, at, done = self._id, len(self.done), partial(next, self.numbers)
        part = self._part(self._said)
        if isinstance(part, OutputText):
            self.text += self._said
            kind, likely = "response.output_text.done", self._likely
            yield TextDone(kind, done(), name, at, 0, self._said, likely)
        else:
            self.thought += self._said
            yield TextDone("response.reasoning_text.done", done(), name, at, 0, self._said)
        yield PartEvent("response.content_part.done", done(), name, at, 0, part)
        item = self._item(status, (part,))
        yield ItemEvent("response.output_item.done", done(), at, item)
        self.done, self._open, self._more_text = (*self.done, item), "", None

    def _begin(self, kind: str) -> Iterator[StreamEvent]:
        self._open, self._said, self._likely = kind, "", ()
        number, at = partial(next, self.numbers), len(self.done)
        item = self._item("in_progress", ())
        yield ItemEvent("response.output_item.added", number(), at, item)
        part = self._part("")
        yield PartEvent("response.content_part.added", number(), self._id, at, 0, part)
        if kind == "text":
            self._more_text = Template.of(
                lambda number, text: frame(self._more_of_text(number, text, ())), NUMBER, TEXT
            )

    def _delta(self, text: str, likely: tuple[SaidToken, ...]) -> StreamEvent:
        number = next(self.numbers)
        if self._open == "thought":
            kind = "response.reasoning_text.delta"
            return DeltaEvent(kind, number, self._id, len(self.done), 0, text)
        self._likely += likely
        return self._more_of_text(number, text, likely)

    def _more_of_text(self, number: int, text: str, likely: tuple[SaidToken, ...]) -> StreamEvent:
        kind, at = "response.output_text.delta", len(self.done)
        return DeltaEvent(kind, number, self._id, at, 0, text, likely)

    def _call(self, piece: Call) -> Iterator[StreamEvent]:
        number, at, call = partial(next, self.numbers), len(self.done), piece.call
        name = f"fc_{self.turn}_{at}"
        begun = FunctionCall(name, call.id, call.name, "", "in_progress")
        item = FunctionCall(name, call.id, call.name, call.arguments, "completed")
        kind = "response.function_call_arguments"
        yield ItemEvent("response.output_item.added", number(), at, begun)
        yield ArgumentsDelta(f"{kind}.delta", number(), name, at, call.arguments)
        yield ArgumentsDone(f"{kind}.done", number(), name, at, call.name, call.arguments)
        yield ItemEvent("response.output_item.done", number(), at, item)
        self.done = (*self.done, item)

    @property
    def _id(self) -> str:
        prefix = "msg" if self._open == "text" else "rs"
        return f"{prefix}_{self.turn}_{len(self.done)}"

    def _part(self, text: str) -> Part:
        if self._open == "thought":
            return ReasoningText(text)
        return OutputText(text, logprobs=self._likely)

    def _item(self, status: Status, parts: tuple[Part, ...]) -> OutputItem:
        if self._open == "thought":
            thoughts = tuple(part for part in parts if isinstance(part, ReasoningText))
            return ReasoningItem(self._id, thoughts, status)
        texts = tuple(part for part in parts if isinstance(part, OutputText))
        return OutputMessage(self._id, texts, status)


def output_of(turn: str, message: Message) -> tuple[OutputItem, ...]:
    """The output of the answer `message`, as a stream of it would have ended."""
    items = Items(turn, lambda _token: b"")
    pieces: list[Piece] = [
        *([Thought(message.thought)] if message.thought else []),
        *([Text(message.content)] if message.content else []),
        *(Call(at, call) for at, call in enumerate(message.tool_calls)),
    ]
    for piece in pieces:
        deque(items.tell(piece, ()), maxlen=0)
    finish = Finish(message.outcome.finish) if message.outcome else None
    deque(items.close(item_status(finish)), maxlen=0)
    return items.done


def item_status(finish: Finish | None) -> Status:
    """How the last item ends of an answer that ended so."""
    return "incomplete" if finish is Finish.LENGTH else "completed"
