"""agentcache agents: what is remembered, and what can be done with it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from agentcache.cli.agent_tables import print_agent, print_agents
from agentcache.cli.desks import Desk, LocalDesk, RemoteDesk, Shown
from agentcache.cli.options import chosen_config, with_config
from agentcache.cli.printable import printable
from agentcache.domain.access import Access
from agentcache.domain.errors import HomeError
from agentcache.domain.session import DEFAULT_TENANT
from agentcache.settings import Bytes, Settings, load

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
        print_agents(found)


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
    if str(file) == "-":
        raise click.UsageError("an agent is exported to a file, not to standard output")
    if file.exists() and not force:
        raise click.UsageError(f"{printable(str(file))} is there already: --force replaces it")
    with _desk(**where) as desk, _files(file):
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

    with _files(file):
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

    named = {name: value for name, value in given.items() if value is not None}
    settings = load(chosen_config())
    try:
        return evolve(settings, **named)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


@contextmanager
def _files(file: Path) -> Iterator[None]:
    """Errors are those of `file`, whatever the name of what is written until it is whole."""
    try:
        yield
    except OSError as error:
        problem = f"{printable(str(file))}: {error.strerror or error}"
        raise click.ClickException(problem) from None


# -- what is printed -------------------------------------------------------------------------


def _tell(agent: Shown, as_json: bool) -> None:
    if as_json:
        _print_json(agent)
    else:
        print_agent(agent)


def _tell_done(told: Shown, line: str, as_json: bool) -> None:
    if as_json:
        _print_json(told)
    else:
        click.echo(line)


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, ensure_ascii=True))
