"""Tables of the report: Markdown lines from the results of each benchmark."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Found = Mapping[str, Any]  # JSON
ABOUT = ("bars", "made")  # what every result has beside its figures


def table(corner: str, rows: Mapping[str, Mapping[str, object]]) -> Iterator[str]:
    """A line for each of `rows`; columns are what any of them has."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    yield f"| {corner} | {' | '.join(columns)} |"
    yield f"|---|{'--:|' * len(columns)}"
    for name, row in rows.items():
        yield f"| {name} | {' | '.join(_cell(row.get(column)) for column in columns)} |"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def by_name(key: str, corner: str) -> Callable[[Found], Iterator[str]]:
    """One table, of what is under `key`."""
    return lambda found: table(corner, found[key])


def figures(found: Found) -> Iterator[str]:
    """Whatever is there: tables of what is nested twice, lines of single figures first."""
    parts = {name: part for name, part in found.items() if name not in ABOUT}
    single = {name: part for name, part in parts.items() if not isinstance(part, Mapping)}
    flat = {
        name: _numbers(part)
        for name, part in parts.items()
        if isinstance(part, Mapping) and not _nested(part)
    }
    if single:
        yield from table("", {name: {"": value} for name, value in single.items()})
        yield ""
    if flat:
        yield from table("", flat)
        yield ""
    for name, part in parts.items():
        if isinstance(part, Mapping) and _nested(part):
            yield from table(name, part)
            yield ""


def _nested(part: Found) -> bool:
    return any(isinstance(one, Mapping) for one in part.values())


def _numbers(part: Found) -> dict[str, object]:
    return {name: value for name, value in part.items() if not isinstance(value, list)}


def resume(found: Found) -> Iterator[str]:
    """Seconds and ratios by length."""
    lengths = found["tokens"]
    for whose in ("agentcache", "mlx_lm.server"):
        yield from table(f"{whose}: tokens", {n: one[whose] for n, one in lengths.items()})
        yield ""
    yield from table("ratios: tokens", {n: one["ratios"] for n, one in lengths.items()})


def stages(found: Found) -> Iterator[str]:
    """Milliseconds by length, codec and stage."""
    for length, codecs in found.items():
        if length not in ABOUT:
            yield from table(length, codecs)
            yield ""


def batching(found: Found) -> Iterator[str]:
    """Ours, and in brackets its ratio to theirs."""
    for state, counts in found["agentcache"].items():
        ratios = found["ratios"][state]
        rows = {
            count: {
                what: f"{_cell(value)} ({ratios[count][what]:.3g}×)" for what, value in told.items()
            }
            for count, told in sorted(counts.items(), key=lambda one: int(one[0]))
        }
        yield from table(f"{state}: agents", rows)
        yield ""


def core(found: Found) -> Iterator[str]:
    """Microseconds by idle sessions, in a second, growth of these and of the instructions."""
    sessions, counted = found["microseconds"], found.get("instructions")
    fewest, most = min(sessions, key=int), max(sessions, key=int)
    rows = {}
    for name, last in sessions[most].items():
        row: dict[str, object] = {f"{int(n):,}": round(one[name], 1) for n, one in sessions.items()}
        row["a second"] = int(1e6 / last)
        row["growth"] = f"{last / sessions[fewest][name]:.2f}×"
        if counted:
            row["of instructions"] = f"{counted[most][name] / counted[fewest][name]:.2f}×"
        rows[name] = row
    yield from table("idle sessions", rows)


def shapes(found: Found) -> Iterator[str]:
    """The two ratios of each architecture."""
    rows = {
        name: {key: one[key] for key in ("RAM / hot", "disk / hot")}
        for name, one in found.items()
        if isinstance(one, Mapping) and "RAM / hot" in one
    }
    yield from table("architecture", rows)
