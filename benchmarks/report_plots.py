"""Plots of the report."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from plot import COLOURS, Axis, Plot

Found = Mapping[str, Any]  # JSON
Line = Sequence[tuple[float, float]]


def first_token(found: Found) -> Plot:
    """Seconds to the first token by tokens."""
    lengths = found["tokens"]
    lines = {
        "cold": _by_number(lengths, "agentcache", "cold"),
        "after kill -9": _by_number(lengths, "agentcache", "killed"),
        "hot": _by_number(lengths, "agentcache", "hot"),
        "mlx_lm cold": _by_number(lengths, "mlx_lm.server", "cold"),
        "mlx_lm hot": _by_number(lengths, "mlx_lm.server", "hot"),
    }
    return _plot("First token", "tokens remembered", "seconds", lines, log=True)


def speed_up(found: Found) -> Plot:
    """How many times sooner the first token is there after kill -9 than from nothing."""
    line = _by_number(found["tokens"], "ratios", "cold / killed")
    return _plot("Cold ÷ after kill -9", "tokens remembered", "times", {"times": line}, log=False)


def throughput(found: Found) -> Plot:
    """Tokens a second of all agents by their number."""
    lines = {
        f"{whose}{short}": _by_number(found[full][f"{mix}, coming back"], "decode, tokens/s")
        for whose, full in (("", "agentcache"), ("mlx_lm ", "mlx_lm.server"))
        for mix, short in (("equal", "equal"), ("one long", "one long"))
    }
    return _plot("Decode, all agents together", "agents", "tokens/s", lines, log=False)


def memory(found: Found) -> Plot:
    """Bytes an agent in RAM and on disk, by the order of the codecs."""
    codecs = found["bytes an agent"]
    most = max(max(one["idle in RAM"], one["on disk"]) for one in codecs.values()) / 1e6
    x = Axis("codec", 0, len(codecs), ())
    plot = Plot("An idle agent", x, Axis("MB in RAM", 0, most, _ticks(0, most)))
    for at, (name, one) in enumerate(codecs.items()):
        colour = COLOURS[at % len(COLOURS)]
        plot.point(at + 0.2, one["idle in RAM"] / 1e6, name, colour)
    return plot


def growth(found: Found) -> Plot:
    """Microseconds by idle sessions; both logarithmic."""
    sessions = found["microseconds"]
    shown = ("step of 8", "turn of", "match of", "new segment")
    names = [name for name in next(iter(sessions.values())) if name.startswith(shown)]
    lines = {
        name.split(",")[0][:18]: _by_number(sessions, name)
        for name in names
        if "waiting" not in name
    }
    return _plot("Beside idle sessions", "idle sessions", "µs", lines, log=True, log_x=True)


def _by_number(found: Found, *path: str) -> Line:
    """Points by the numbers that name the parts of `found`."""
    points = []
    for number, one in found.items():
        value: Any = one
        for name in path:
            value = value.get(name) if value else None
        if value:
            points.append((float(number), float(value)))
    return sorted(points)


def _plot(
    title: str,
    x: str,
    y: str,
    lines: Mapping[str, Line],
    *,
    log: bool,
    log_x: bool = False,
) -> Plot:
    shown = {name: line for name, line in lines.items() if line}
    plot = Plot(
        title,
        _axis(x, [at for line in shown.values() for at, _ in line], log_x),
        _axis(y, [at for line in shown.values() for _, at in line], log),
    )
    for (name, line), colour in zip(shown.items(), COLOURS, strict=False):
        plot.line(line, name, colour)
    return plot


def _axis(label: str, values: Iterable[float], log: bool) -> Axis:
    found = sorted(values) or [1.0]
    if log:
        low, high = math.floor(math.log10(found[0])), math.ceil(math.log10(found[-1]))
        high = max(high, low + 1)
        return Axis(label, 10.0**low, 10.0**high, [10.0**n for n in range(low, high + 1)], log=True)
    high_end = found[-1] * 1.05
    return Axis(label, 0, high_end, _ticks(0, high_end))


def _ticks(low: float, high: float) -> list[float]:
    """Four to ten round numbers."""
    step = 10.0 ** math.floor(math.log10(high - low))
    while (high - low) / step < 4:
        step /= 2
    return [low + step * n for n in range(int((high - low) / step) + 1)]
