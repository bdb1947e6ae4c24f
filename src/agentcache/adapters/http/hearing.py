"""A turn as every dialect tells it: its answer read into text, thoughts and calls."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from attrs import frozen

from agentcache.domain.answer import Call, Piece, Text, Thought
from agentcache.domain.conversation import ToolCall
from agentcache.domain.errors import TurnCancelled, TurnFailed
from agentcache.domain.events import Delta, Ended
from agentcache.domain.logprobs import Logprobs
from agentcache.domain.request import Finish
from agentcache.service import RunningTurn

Likely = tuple[tuple[int, Logprobs], ...]


@frozen
class Heard:
    """What came of the answer since the last one; `likely` as in `Delta`."""

    pieces: tuple[Piece, ...]
    likely: Likely = ()


@frozen
class Answer:
    """A whole answer, and its pieces in order."""

    pieces: tuple[Piece, ...]
    text: str
    thought: str
    calls: tuple[ToolCall, ...]
    likely: Likely
    ended: Ended


async def hear(turn: RunningTurn, pause: float) -> AsyncGenerator[Heard | Ended | None]:
    """The turn piece by piece, then its end; None whenever there was nothing for `pause` seconds.

    Raises TurnFailed, TurnCancelled or Unavailable when the turn ends otherwise.
    """
    reader, ended = turn.reading.reader(), False
    async with aclosing(turn.events(pause)) as events:
        async for event in events:
            if event is None:
                yield None
            elif isinstance(event, Delta):
                pieces = reader.push(event.text)
                if pieces or event.likely:
                    yield Heard(tuple(pieces), event.likely)
            else:
                if rest := reader.finish():
                    yield Heard(tuple(rest))
                _check_complete(event)
                yield event
                ended = True
    if not ended:
        raise TurnCancelled


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
    return _answer([*pieces, *reader.finish()], tuple(likely), ended)


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
