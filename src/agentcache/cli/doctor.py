"""agentcache doctor: is everything as it should be, and what to do where it is not."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from attrs import asdict, evolve
from typed_settings.exceptions import TsError

from agentcache.cli.finding import Finding
from agentcache.cli.options import chosen_config, with_config
from agentcache.cli.printable import printable
from agentcache.domain.errors import AgentCacheError
from agentcache.settings import Settings, load, problems

_COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "red"}


@click.command()
@click.option("--home", type=click.Path(path_type=Path), help="Folder of agentcache.")
@click.option("--model", "ref", help="Load this model, too, and tell how its caches are kept.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_config
def doctor(home: Path | None, ref: str | None, as_json: bool) -> None:
    """Look at the installation, the home and the settings, and change nothing.

    Exits with 1 if there is a problem. With --model the model is loaded, after being fetched and
    converted if it has to be.
    """
    found = list(_findings(chosen_config(), home, ref))
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found]))
    else:
        _print(found)
    if any(one.level == "problem" for one in found):
        raise SystemExit(1)


def _findings(config: Path | None, home: Path | None, ref: str | None) -> Iterator[Finding]:
    from agentcache.cli.check_home import check_home
    from agentcache.cli.check_machine import check_machine
    from agentcache.cli.check_settings import check_settings

    yield from check_settings(config)
    settings = Settings()
    try:
        settings = load(config)
    except TsError as error:
        yield Finding(
            "settings", "problem", problems(error), "Correct them; defaults are used here"
        )
    changes: dict[str, Any] = {"home": home, "model": ref}
    settings = evolve(settings, **{name: to for name, to in changes.items() if to is not None})
    yield from check_machine(settings.cpu_path)
    yield from check_home(settings)
    if ref is not None:
        yield from _check_model(settings)


def _check_model(settings: Settings) -> Iterator[Finding]:
    """Load the model as a server would, and tell what its caches are."""
    from agentcache.adapters.models import LocalModelSource
    from agentcache.cli.progress import progress_bar
    from agentcache.container import open_model

    try:
        with progress_bar(settings.model) as progress:
            folder = LocalModelSource(settings.home.expanduser()).resolve(settings.model, progress)
        engine = open_model(folder, settings, settings.home.expanduser())
    except AgentCacheError as error:
        yield Finding("model", "problem", str(error), "See `agentcache models --help`")
        return
    with _closing(engine):
        card = engine.card
        kinds = ", ".join(sorted({layer.kind.value for layer in card.spec.layers}))
        message = (
            f"{len(card.spec.layers)} caches ({kinds}), {card.spec.dtype}, {card.context} tokens"
        )
        yield Finding("caches", "ok", message)
        if getattr(engine, "known", False):
            yield Finding("caches", "ok", "as they were found before, with what is installed now")
        for note in card.notes:
            yield Finding("caches", "note", note)


@contextmanager
def _closing(engine: Any) -> Iterator[None]:
    try:
        yield
    finally:
        engine.close()


def _print(found: list[Finding]) -> None:
    for one in found:
        level = click.style(f"{one.level:8}", fg=_COLOURS[one.level])
        click.echo(f"{level}{one.about:13}{printable(one.message)}")
        if one.remedy:
            click.echo(f"{'':21}→ {printable(one.remedy)}")
