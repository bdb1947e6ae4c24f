"""agentcache agents: what is remembered, and what can be done with it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from agentcache.cli.desks import Desk, LocalDesk, RemoteDesk, Shown
from agentcache.cli.options import chosen_config, with_config
from agentcache.cli.printable import printable
from agentcache.domain.access import Access
from agentcache.domain.errors import HomeError
from agentcache.domain.session import DEFAULT_TENANT
from agentcache.settings import Bytes, Settings, load

_COLUMNS = (
    "name", "codec", "tier", "tokens", "turns", "bytes", "hit_rate", "used", "pinned", "parent",
)  # fmt: skip
_Command = TypeVar("_Command", bound=Callable[..., None])


def _options(command: _Command) -> _Command:
    """Options that all of these commands have."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option("--tenant", default=DEFAULT_TENANT, help="Whose agents, without a server."),
        click.option("--model", help="Whose agents, if not those of the model of the settings."),
        click.option("--home", type=click.Path(path_type=Path), help="Folder of agentcache."),
    ):
        command = option(command)
    return with_config(command)


@click.group()
def agents() -> None:
    """Look at agents, fork, rewind, pin, delete, export and import them.

    If a server has the home, it is asked; else the home is opened, without loading the model.
    """


@agents.command("ls")
@click.option("--all", "nameless", is_flag=True, help="Also conversations without a name.")
@_options
def list_(nameless: bool, as_json: bool, **where: Any) -> None:
    """List the agents."""
    with _desk(**where) as desk:
        found = desk.all(nameless)
    if as_json:
        _print_json(found)
    else:
        _print_table(found)


@agents.command()
@click.argument("name")
@click.option("--messages", is_flag=True, help="Also what was said.")
@_options
def show(name: str, messages: bool, as_json: bool, **where: Any) -> None:
    """Show the agent NAME."""
    with _desk(**where) as desk:
        _tell(desk.one(name, messages), as_json)


@agents.command()
@click.argument("name")
@click.argument("new")
@_options
def fork(name: str, new: str, as_json: bool, **where: Any) -> None:
    """Make the agent NEW, which remembers all that NAME does."""
    with _desk(**where) as desk:
        _tell(desk.fork(name, new), as_json)


@agents.command()
@click.argument("name")
@click.argument("turns", type=click.IntRange(min=1), default=1)
@_options
def rewind(name: str, turns: int, as_json: bool, **where: Any) -> None:
    """Take the last TURNS (default: 1) turns of the agent NAME back."""
    with _desk(**where) as desk:
        _tell(desk.rewind(name, turns), as_json)


@agents.command()
@click.argument("name")
@click.option("--ttl", type=click.FloatRange(0, 1e10), help="Forget it so many seconds from now.")
@_options
def pin(name: str, ttl: float | None, as_json: bool, **where: Any) -> None:
    """Keep the agent NAME from being evicted."""
    change: Shown = {"pinned": True} | ({} if ttl is None else {"ttl": ttl})
    with _desk(**where) as desk:
        _tell(desk.pin(name, change), as_json)


@agents.command()
@click.argument("name")
@_options
def unpin(name: str, as_json: bool, **where: Any) -> None:
    """Let the agent NAME be evicted like any, and no longer expire at a set time."""
    with _desk(**where) as desk:
        _tell(desk.pin(name, {"pinned": False, "ttl": None}), as_json)


@agents.command("rm")
@click.argument("name")
@_options
def remove(name: str, as_json: bool, **where: Any) -> None:
    """Delete the agent NAME."""
    with _desk(**where) as desk:
        desk.forget(name)
    _tell_done({"name": name, "deleted": True}, f"{printable(name)} is deleted", as_json)


@agents.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@_options
def export(name: str, file: Path, force: bool, as_json: bool, **where: Any) -> None:
    """Write the agent NAME to FILE, which any home with its model can import.

    The file holds what was said, in plain text.
    """
    if file.exists() and not force:
        raise click.UsageError(f"{printable(str(file))} is there already: take --force")
    with _desk(**where) as desk, _files():
        nbytes = desk.export(name, file)
    told = f"{printable(name)} is in {printable(str(file))}, {Bytes(nbytes)}"
    _tell_done({"name": name, "file": str(file), "bytes": nbytes}, told, as_json)


@agents.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--as", "name", help="What to call it here.")
@click.option("--replace", is_flag=True, help="Replace the agent of that name, if there is one.")
@_options
def import_(file: Path, name: str | None, replace: bool, as_json: bool, **where: Any) -> None:
    """Take in the agent of FILE, if all of it adds up and it is of this model."""
    from agentcache.adapters.disk.portable import PortableTars

    with _files():
        with PortableTars().open(file) as found:
            called = name or found.portable.session.name
        with _desk(arriving=file, **where) as desk:
            _tell(desk.take_in(called, file, replace), as_json)


# -- who is asked ----------------------------------------------------------------------------


@contextmanager
def _desk(arriving: Path | None = None, **where: Any) -> Iterator[Desk]:
    from agentcache.adapters.disk import home
    from agentcache.cli import logs

    tenant = Access(str(where.pop("tenant"))).tenant
    settings = _settings(where)
    owner = home.owner(settings.home)
    if owner is not None and owner.address is not None:
        yield RemoteDesk(owner.address)
        return
    if not settings.home.expanduser().is_dir() and arriving is None:
        remedy = "Name another one (--home, AGENTCACHE_HOME)"
        raise HomeError(str(settings.home), "there is no such folder", remedy)
    from agentcache.cli.at_rest import at_rest

    logs.configure(settings.log_format, "warning")
    with at_rest(settings, arriving) as container:
        yield LocalDesk(container.service(), tenant)


def _settings(given: dict[str, Any]) -> Settings:
    from attrs import evolve

    return evolve(load(chosen_config()), **{k: v for k, v in given.items() if v is not None})


@contextmanager
def _files() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = f"{printable(str(error.filename or 'the file'))}: {error.strerror or error}"
        raise click.ClickException(problem) from None


# -- what is printed -------------------------------------------------------------------------


def _tell(agent: Shown, as_json: bool) -> None:
    if as_json:
        _print_json(agent)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None)
    for field in (one for one in agent if one not in ("object", "history")):
        table.add_row(field.replace("_", " "), Text(_value(field, agent[field])))
    Console(soft_wrap=True).print(table)
    for message in agent.get("history", ()):
        lines = "\n".join(printable(line) for line in str(message["content"]).split("\n"))
        click.echo(f"\n{printable(str(message['role']))}: {lines}")


def _print_table(found: list[Shown]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    for field in _COLUMNS:
        table.add_column(field.replace("_", " "), no_wrap=field != "name", overflow="fold")
    for agent in found:
        table.add_row(*(Text(_value(field, agent[field])) for field in _COLUMNS))
    console = Console()
    console.print(table, soft_wrap=not console.is_terminal)


def _value(field: str, value: object) -> str:
    if value is None:
        return "-"
    if field in ("created", "used", "expires"):
        return _date(float(str(value)))
    if field.endswith("bytes"):
        return str(Bytes(int(str(value))))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(str(value))


def _date(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.0f}"


def _tell_done(told: Shown, line: str, as_json: bool) -> None:
    if as_json:
        _print_json(told)
    else:
        click.echo(line)


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, ensure_ascii=True))
