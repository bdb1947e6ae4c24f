"""What a session remembers of its last positions: the likeliest tokens after each of them."""

from attrs import field, frozen

Top = tuple[tuple[int, float], ...]  # token ids with log-probabilities, the likeliest first
TRACED = 2  # positions: each more costs a resume some 2 % (decision 0014)
TOP = 8  # tokens of each


@frozen
class Trace:
    """The likeliest tokens after each of the positions [stop - len(tops), stop)."""

    stop: int
    tops: tuple[Top, ...] = field()

    @tops.validator
    def _of_positions(self, _attribute: object, value: tuple[Top, ...]) -> None:
        if not 0 < len(value) <= self.stop:
            raise ValueError(f"{len(value)} positions do not end at {self.stop}")

    def before(self, row: int) -> tuple[Top, ...]:
        """Those of the last positions before `row`; none where that is behind all of them."""
        return self.tops[: max(0, len(self.tops) - (self.stop - row))] if row <= self.stop else ()
