"""Answers that are more than text: what a model thinks before it speaks, and the tools it calls.

A model writes all of it as one text, with markers of its own (`AnswerFormat`). A reader takes that
text in pieces, as it is sampled, and gives out what it means. What it gives out does not depend on
how the text is cut into pieces.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b

from attrs import define, field, frozen

from agentcache.domain.conversation import Json, Message, ToolCall

Tools = tuple[Mapping[str, Json], ...]
Called = tuple[str, str]  # the name of a tool, and its arguments as JSON text
ParseCalls = Callable[[str, Tools], Sequence[Called]]


@frozen
class Text:
    """More of what is said."""

    text: str


@frozen
class Thought:
    """More of what is thought before anything is said."""

    text: str


@frozen
class Call:
    """A call of a tool, whole. `index` counts the calls of an answer."""

    index: int
    call: ToolCall


Piece = Text | Thought | Call


@frozen
class AnswerFormat:
    """How a model marks what is no plain text.

    `thinks` and `calls` are the beginning and the end of a thought and of calls; an end of "" is
    that of the answer. `parse` reads what is between: it raises ValueError for what is no call.
    """

    thinks: tuple[str, str] | None = None
    calls: tuple[str, str] | None = None
    parse: ParseCalls = field(default=lambda _text, _tools: (), eq=False, repr=False)

    def opens(self, prompt: str) -> bool:
        """Whether a generation prompt begins a thought, and leaves it to the answer to end it."""
        if self.thinks is None:
            return False
        return prompt.rfind(self.thinks[0]) > prompt.rfind(self.thinks[1])


PLAIN = AnswerFormat()


@frozen
class Reading:
    """How one turn's answer is read; `tools` are those it may call, `seed` makes ids of calls,
    which begin with `calls_begin`.

    With `opened` the answer begins within a thought. With `single` it makes one call at most: what
    comes after that is left out. One that is `forced` is kept to calls: where it is cut within one,
    what there is of that is no text.
    """

    format: AnswerFormat = PLAIN
    tools: Tools = ()
    seed: str = ""
    opened: bool = False
    single: bool = False
    forced: bool = False
    calls_begin: str = "call_"

    def reader(self) -> "AnswerReader":
        """A reader at the beginning of the answer."""
        return AnswerReader(self)

    def message(self, text: str, cut: bool = False) -> Message:
        """The whole answer `text` as a message, which remembers how it was said; see `finish`."""
        reader = self.reader()
        pieces = [*reader.push(text), *reader.finish(cut)]
        content = "".join(one.text for one in pieces if isinstance(one, Text))
        thought = "".join(one.text for one in pieces if isinstance(one, Thought))
        calls = tuple(one.call for one in pieces if isinstance(one, Call))
        said = text if text != content else None
        turn = self.seed or None
        return Message(
            "assistant", content, tool_calls=calls, thought=thought, said=said, turn=turn
        )

    def call_id(self, index: int) -> str:
        """The id of the call that is number `index` in the answer."""
        digest = blake2b(f"{self.seed}/{index}".encode(), digest_size=12).hexdigest()
        return f"{self.calls_begin}{digest}"


@define(eq=False)
class AnswerReader:
    """Reads one answer. White space that only sets thoughts and calls apart is left out.

    What looks like a call and cannot be read as one is text, markers and all; where the answer was
    cut within a call, what there is of that is nothing.
    """

    _reading: Reading
    _held: str = field(default="", init=False)
    _within: str = field(default="text", init=False)
    _calls: int = field(default=0, init=False)
    _strip: bool = field(default=False, init=False)
    _over: bool = field(default=False, init=False)
    _starts: set[str] | None = field(default=None, init=False)  # of the markers that may come now

    def __attrs_post_init__(self) -> None:
        self._within = "thought" if self._reading.opened else "text"

    def push(self, text: str) -> list[Piece]:
        """Take more of the answer; what is certain of it by now."""
        if not self._held and self._is_plain(text):  # as nearly every token is
            return [] if self._over else self._told(text)
        self._held += text
        return self._wanted(self._pieces())

    def finish(self, cut: bool = False) -> list[Piece]:
        """The answer is over: what was held back. It was `cut` unless the model ended it."""
        rest, self._held = self._held, ""
        unread = self._reading.forced or (cut and self._within == "call")
        if self._within == "call":
            last = self._wanted(self._called(rest, "") if rest.strip() else ())
        else:
            last = self._wanted(self._told(rest))
        if unread:
            return [piece for piece in last if not isinstance(piece, Text)]
        return last

    # -- inside ------------------------------------------------------------------------------

    def _is_plain(self, text: str) -> bool:
        """Whether no marker can begin in `text`, nor end in it."""
        if self._starts is None:
            self._starts = {marker[0] for marker in self._markers()}
        return self._within != "call" and self._starts.isdisjoint(text)

    def _wanted(self, pieces: Iterable[Piece]) -> list[Piece]:
        found = []
        for piece in pieces:
            if not self._over:
                found.append(piece)
                self._over = self._reading.single and isinstance(piece, Call)
        return found

    def _pieces(self) -> Iterator[Piece]:
        while (found := self._first_marker()) is not None:
            at, marker = found
            before, self._held = self._held[:at], self._held[at + len(marker) :]
            if self._within == "call":
                yield from self._called(before, marker)
            else:
                yield from self._told(before)
                self._enter(marker)
        if self._within == "call":
            return
        certain = len(self._held) - self._pending()
        told, self._held = self._held[:certain], self._held[certain:]
        yield from self._told(told)

    def _enter(self, marker: str) -> None:
        form, self._starts = self._reading.format, None
        if self._within == "thought":
            self._within, self._strip = "text", True
        elif form.thinks is not None and marker == form.thinks[0]:
            self._within, self._strip = "thought", True
        else:
            self._within = "call"

    def _markers(self) -> list[str]:
        form = self._reading.format
        if self._within == "thought":
            return [form.thinks[1]] if form.thinks else []
        if self._within == "call":
            return [form.calls[1]] if form.calls and form.calls[1] else []
        begins = [form.thinks[0]] if form.thinks else []
        if form.calls and self._reading.tools:
            begins.append(form.calls[0])
        return begins

    def _first_marker(self) -> tuple[int, str] | None:
        found = [(self._held.find(marker), marker) for marker in self._markers()]
        return min((one for one in found if one[0] >= 0), default=None)

    def _pending(self) -> int:
        """The length of the longest end of what is held that begins a marker."""
        longest = max(map(len, self._markers()), default=1)
        for size in range(min(len(self._held), longest - 1), 0, -1):
            if any(marker.startswith(self._held[-size:]) for marker in self._markers()):
                return size
        return 0

    def _told(self, text: str) -> list[Piece]:
        if self._strip:
            text = text.lstrip()
            self._strip = not text
        if not text:
            return []
        return [Thought(text) if self._within == "thought" else Text(text)]

    def _called(self, text: str, end: str) -> Iterator[Piece]:
        """The calls in `text`, which ends with the marker `end`."""
        self._within, self._starts = "text", None
        form = self._reading.format
        assert form.calls is not None
        try:
            calls = [_readable(one) for one in form.parse(text, self._reading.tools)]
        except (ValueError, RecursionError):
            yield from self._told(form.calls[0] + text + end)
            return
        self._strip = True
        for name, arguments in calls:
            index = self._calls
            self._calls += 1
            yield Call(index, ToolCall(self._reading.call_id(index), name, arguments))


def _readable(call: Called) -> Called:
    """`call` as any client can read it. Raises ValueError where none can: NaN is no JSON."""
    name, arguments = call
    found = json.loads(arguments)
    if not name or not isinstance(found, dict):
        raise ValueError("a call has a name and an object of arguments")
    written = json.dumps(found, ensure_ascii=False, allow_nan=False)
    whole = _whole(written)
    return _whole(name), arguments if whole == written else whole


def _whole(text: str) -> str:
    """`text` with U+FFFD for every half of a character, which UTF-8 has no bytes for."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
