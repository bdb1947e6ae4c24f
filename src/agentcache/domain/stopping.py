"""Stop sequences over text that comes in pieces."""

from collections.abc import Sequence

from attrs import define, field

from agentcache.domain.errors import InvalidRequest


@define(eq=False)
class StopMatcher:
    """Finds the stop sequence that is complete first; of several that end there, the longest.

    What it finds does not depend on how the text is cut into pieces. Text that may still become a
    stop sequence is held back, so that no part of one is ever given out. After a hit the matcher
    gives out nothing more. Raises InvalidRequest for an empty stop sequence.
    """

    stops: tuple[str, ...] = field()
    _held: str = field(default="", init=False)
    _hit: str | None = field(default=None, init=False)
    _beginnings: frozenset[str] = field(init=False, repr=False)
    _longest: int = field(init=False, repr=False)

    @stops.validator
    def _not_empty(self, _attribute: object, stops: Sequence[str]) -> None:
        if not all(stops):
            raise InvalidRequest("a stop sequence must not be empty", "stop")

    @_beginnings.default
    def _all_beginnings(self) -> frozenset[str]:
        return frozenset(stop[:size] for stop in self.stops for size in range(1, len(stop)))

    @_longest.default
    def _longest_beginning(self) -> int:
        return max((len(beginning) for beginning in self._beginnings), default=0)

    @property
    def hit(self) -> str | None:
        """The stop sequence that was found."""
        return self._hit

    def push(self, text: str) -> tuple[str, str | None]:
        """Take more text; return what is certain not to belong to a stop sequence, and the hit."""
        if not self.stops:
            return text, None
        if self._hit is not None:
            return "", self._hit
        text = self._held + text
        found = self._first(text)
        if found is not None:
            start, self._hit = found
            self._held = ""
            return text[:start], self._hit
        kept = len(text) - self._pending(text)
        self._held = text[kept:]
        return text[:kept], None

    def finish(self) -> str:
        """The text that was held back: no stop sequence came of it."""
        rest, self._held = self._held, ""
        return rest

    def _first(self, text: str) -> tuple[int, str] | None:
        found = ((text.find(stop), stop) for stop in self.stops)
        ends = [(start + len(stop), start, stop) for start, stop in found if start >= 0]
        return min(ends)[1:] if ends else None

    def _pending(self, text: str) -> int:
        """The length of the longest end of `text` that begins a stop sequence."""
        sizes = range(min(len(text), self._longest), 0, -1)
        return next((size for size in sizes if text[-size:] in self._beginnings), 0)
