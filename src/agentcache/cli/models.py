"""agentcache models: fetch, list and remove models."""

from pathlib import Path

import click

from agentcache.cli.options import chosen_config, with_config
from agentcache.cli.progress import progress_bar
from agentcache.settings import Bytes, load

_home = click.option("--home", type=click.Path(path_type=Path), help="Folder of agentcache.")


@click.group()
def models() -> None:
    """Fetch, list and remove models."""


@models.command()
@click.argument("ref")
@_home
@with_config
def pull(ref: str, home: Path | None) -> None:
    """Fetch the model REF and make it ready to be served."""
    from agentcache.adapters.models import LocalModelSource

    with progress_bar(ref) as progress:
        folder = LocalModelSource(_chosen(home)).resolve(ref, progress)
    click.echo(f"{ref} is ready in {folder.path}")


@models.command("ls")
@_home
@with_config
def list_(home: Path | None) -> None:
    """List the models that are kept on this machine."""
    from agentcache.adapters.models import LocalModelSource

    kept = LocalModelSource(_chosen(home)).list()
    width = max((len(model.ref) for model in kept), default=0)
    for model in kept:
        click.echo(f"{model.ref:{width}}  {Bytes(model.nbytes)!s:>8}  {model.path}")


@models.command("rm")
@click.argument("ref")
@_home
@with_config
def remove(ref: str, home: Path | None) -> None:
    """Delete the model REF from this machine."""
    from agentcache.adapters.models import LocalModelSource

    freed = LocalModelSource(_chosen(home)).remove(ref)
    click.echo(f"{ref} is removed, {Bytes(freed)} are free again")


def _chosen(home: Path | None) -> Path:
    return home.expanduser() if home else load(chosen_config()).home
