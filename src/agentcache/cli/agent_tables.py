"""Agents as people read them: in a terminal as wide as it is, elsewhere one line each."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import click

from agentcache.cli.printable import printable
from agentcache.settings import Bytes

Shown = Mapping[str, Any]

_COLUMNS = (
    *("name", "codec", "tier", "tokens", "turns"),
    *("bytes", "hit_rate", "used", "pinned", "parent"),
)
_FIRST_TO_GO = (
    *("parent", "hit_rate", "pinned", "codec", "tier"),
    *("bytes", "tokens", "used", "turns"),
)
_TITLES = {"used": "used (UTC)"}
_NUMBERS = ("tokens", "turns", "bytes", "hit_rate")
_GAP = 2
_LEAST_NAME = 24  # longer names are folded where columns would have to go


def print_agents(found: Sequence[Shown]) -> None:
    """A table of agents; a narrow terminal has fewer columns, but always their names."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    widths = {field: _width(field, found) for field in _COLUMNS}
    fields = _fitting(widths, console.width) if console.is_terminal else _COLUMNS
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    for field in fields:
        folds = field == "name" and console.is_terminal
        justify: Literal["left", "right"] = "right" if field in _NUMBERS else "left"
        table.add_column(_title(field), no_wrap=not folds, overflow="fold", justify=justify)
    for agent in found:
        table.add_row(*(Text(value_of(field, agent[field])) for field in fields))
    if not console.is_terminal:
        console.width = sum(widths.values()) + _GAP * len(widths)
    console.print(table)


def print_agent(agent: Shown) -> None:
    """All that is told of one agent, and what was said if that is part of it."""
    fields = [one for one in agent if one not in ("object", "history")]
    width = max(len(_label(field)) for field in fields)
    for field in fields:
        click.echo(f"{_label(field):{width}}  {value_of(field, agent[field])}")
    for message in agent.get("history", ()):
        lines = "\n".join(printable(line) for line in str(message["content"]).split("\n"))
        click.echo(f"\n{printable(str(message['role']))}: {lines}")


def value_of(field: str, value: object) -> str:
    """The value of a field of an agent, in a form that cannot steer a terminal."""
    if value is None:
        return "-"
    if field in ("created", "used", "expires"):
        return _date(float(str(value)))
    if field.endswith("bytes"):
        return str(Bytes(int(str(value))))
    if field == "hit_rate":
        return f"{float(str(value)):.0%}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(str(value))


def _fitting(widths: Mapping[str, int], width: int) -> tuple[str, ...]:
    """The columns that there is room for, in order."""
    fields = list(_COLUMNS)
    least = dict(widths) | {"name": min(widths["name"], _LEAST_NAME)}
    for field in _FIRST_TO_GO:
        if sum(least[one] + _GAP for one in fields) <= width:
            break
        fields.remove(field)
    return tuple(fields)


def _width(field: str, found: Sequence[Shown]) -> int:
    from rich.cells import cell_len

    values = (value_of(field, agent[field]) for agent in found)
    return max(map(cell_len, (_title(field), *values)))


def _title(field: str) -> str:
    return _TITLES.get(field, field.replace("_", " "))


def _label(field: str) -> str:
    label = field.replace("_", " ")
    return f"{label} (UTC)" if field in ("created", "used", "expires") else label


def _date(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.0f}"
