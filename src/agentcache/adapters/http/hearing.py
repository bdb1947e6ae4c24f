"""A turn as every dialect tells it: its answer read into text, thoughts and calls."""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from attrs import frozen

from agentcache.domain.answer import Call, Piece, Text, Thought
from agentcache.domain.conversation import ToolCall
from agentcache.domain.errors import TurnCancelled, TurnFailed
from agentcache.domain.events import Delta, Ended
from agentcache.domain.logprobs import Logprobs
from agentcache.domain.request import Finish
from agentcache.service import RunningTurn

Likely = tuple[tuple[int, Logprobs], ...]


class Frames(Protocol):
    """One answer as it comes, as bytes of the stream of a dialect."""

    def begin(self) -> bytes:
        """What comes before anything is said; may be empty."""
        ...

    def more(self, pieces: Sequence[Piece], likely: Likely) -> bytes:
        """What came of the answer since the last time; `likely` as in `Delta`. May be empty."""
        ...

    def pause(self) -> bytes:
        """Nothing was said for a while."""
        ...

    def end(self, ended: Ended) -> bytes:
        """The answer is complete."""
        ...

    def fail(self, error: Exception) -> bytes:
        """The answer ends otherwise. The status is long sent: the error is a part of the stream."""
        ...


@frozen
class Answer:
    """A whole answer, and its pieces in order."""

    pieces: tuple[Piece, ...]
    text: str
    thought: str
    calls: tuple[ToolCall, ...]
    likely: Likely
    ended: Ended


async def hear(turn: RunningTurn, frames: Frames, pause: float) -> AsyncGenerator[bytes]:
    """The turn as it comes, and a sign of life whenever nothing was said for `pause` seconds."""
    yield frames.begin()
    reader, ended = turn.reading.reader(), False
    try:
        while not ended:
            event = await turn.next(pause)
            if event is None:
                yield frames.pause()
            elif isinstance(event, Delta):
                pieces = reader.push(event.text)
                if pieces or event.likely:
                    yield frames.more(pieces, event.likely)
            else:
                ended = True
                if rest := reader.finish(event.cut):
                    yield frames.more(rest, ())
                _check_complete(event)
                yield frames.end(event)
    except Exception as error:
        yield frames.fail(error)


async def heard_out(turn: RunningTurn) -> Answer:
    """The answer when it is complete. Raises what `hear` raises."""
    reader, pieces, likely = turn.reading.reader(), list[Piece](), list[tuple[int, Logprobs]]()
    ended: Ended | None = None
    async for event in turn:
        if isinstance(event, Ended):
            ended = event
        else:
            pieces += reader.push(event.text)
            likely += event.likely
    if ended is None:
        raise TurnCancelled
    _check_complete(ended)
    return _answer([*pieces, *reader.finish(ended.cut)], tuple(likely), ended)


def _check_complete(ended: Ended) -> None:
    """Raise TurnFailed or TurnCancelled unless the answer came to an end."""
    if ended.finish is Finish.FAILED:
        raise TurnFailed(ended.problem or "the engine could not go on")
    if ended.finish is Finish.CANCELLED:
        raise TurnCancelled(ended.problem or "cancelled")


def _answer(pieces: list[Piece], likely: Likely, ended: Ended) -> Answer:
    return Answer(
        tuple(pieces),
        "".join(one.text for one in pieces if isinstance(one, Text)),
        "".join(one.text for one in pieces if isinstance(one, Thought)),
        tuple(one.call for one in pieces if isinstance(one, Call)),
        likely,
        ended,
    )
