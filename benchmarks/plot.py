"""Small plots as SVG: points and lines over linear or logarithmic axes."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from attrs import define, field, frozen

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 76, 130, 40, 52
COLOURS = ("#3b6fd4", "#d1495b", "#2e8b57", "#b8860b", "#7b5ea7")
# On a page of either colour.
INK, GRID = "#7a828c", "#7a828c40"


@frozen
class Axis:
    """One axis: its label, its ends, where it has ticks, and whether it is logarithmic."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    log: bool = False

    def share(self, value: float) -> float:
        """Where `value` is between the ends, 0 to 1."""
        low, high, at = (self._scaled(one) for one in (self.low, self.high, value))
        return (at - low) / (high - low)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value


@define
class Plot:
    """Collects shapes; `write` makes the file."""

    title: str
    x: Axis
    y: Axis
    _shapes: list[str] = field(factory=list, init=False)

    def point(self, x: float, y: float, label: str, colour: str) -> None:
        """A dot with its label to the right."""
        px, py = self._place(x, y)
        self._shapes.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="5" fill="{colour}"/>')
        self._text(px + 9, py + 4, label, colour)

    def line(self, points: Sequence[tuple[float, float]], label: str, colour: str) -> None:
        """A line; its label stands at its end, or nowhere when it is empty."""
        places = [self._place(x, y) for x, y in points]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
        dashes = "" if label else ' stroke-dasharray="4 4"'
        self._shapes.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'
        )
        if label:
            self._text(places[-1][0] + 6, places[-1][1] + 4, label, colour)

    def write(self, path: Path) -> None:
        """Write the SVG file."""
        drawn = "\n".join([*self._frame(), *self._shapes])
        path.write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'width="{WIDTH}" height="{HEIGHT}" role="img" font-family="sans-serif" '
            f'font-size="12">\n<title>{escape(self.title)}</title>\n{drawn}\n</svg>\n'
        )

    def _frame(self) -> Iterable[str]:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        yield f'<text x="{LEFT}" y="22" fill="{INK}" font-size="14">{escape(self.title)}</text>'
        for tick in self.x.ticks:
            px, _ = self._place(tick, self.y.low)
            yield f'<path d="M{px:.1f} {TOP}V{bottom}" stroke="{GRID}"/>'
            yield _label(px, bottom + 17, f"{tick:g}", "middle")
        for tick in self.y.ticks:
            _, py = self._place(self.x.low, tick)
            yield f'<path d="M{LEFT} {py:.1f}H{right}" stroke="{GRID}"/>'
            yield _label(LEFT - 7, py + 4, f"{tick:g}", "end")
        yield _label((LEFT + right) / 2, HEIGHT - 14, self.x.label, "middle")
        middle = (TOP + bottom) / 2
        turned = f'<g transform="rotate(-90 18 {middle})">'
        yield turned + _label(18, middle, self.y.label, "middle") + "</g>"

    def _text(self, x: float, y: float, text: str, colour: str) -> None:
        self._shapes.append(f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}">{escape(text)}</text>')

    def _place(self, x: float, y: float) -> tuple[float, float]:
        px = LEFT + self.x.share(x) * (WIDTH - LEFT - RIGHT)
        return px, HEIGHT - BOTTOM - self.y.share(y) * (HEIGHT - TOP - BOTTOM)


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{INK}" text-anchor="{anchor}">{escape(text)}</text>'
    )
