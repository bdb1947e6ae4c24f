"""agentcache keys: who may use a server, and as which tenant."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from agentcache.cli.options import chosen_config, with_config
from agentcache.domain.access import Access
from agentcache.settings import Settings, load

if TYPE_CHECKING:
    from agentcache.adapters.disk.key_file import Key, KeyFile
    from agentcache.ports.keyring import Keyring

ONE_KEY = "AGENTCACHE_API_KEY"
NAME = "keys.json"
_file = click.option(
    "--api-keys", type=click.Path(dir_okay=False, path_type=Path), help="The file of the keys."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def keyring(settings: Settings) -> "Keyring | None":
    """The keys that `settings` and the environment name; None when there are none at all.

    AGENTCACHE_API_KEY holds one secret, with all rights of the default tenant. Raises HomeError
    for a key file that was named and is not there.
    """
    from agentcache.adapters.memory.keyring import MemoryKeyring

    secret = os.environ.get(ONE_KEY, "")
    if secret:
        return MemoryKeyring({secret: Access(admin=True, key="environment")})
    keys = _key_file(settings, None)
    if settings.api_keys is None and not keys.path.exists():
        return None
    return keys.existing(keys.path, keys.clock)


@click.group()
def keys() -> None:
    """Say who may use a server. A key belongs to a tenant, whose agents it works with.

    Running servers go by a change at once. Without any key, a server only listens to this machine.
    """


@keys.command()
@click.argument("tenant")
@click.option("--admin", is_flag=True, help="It may also swap models and delete agents.")
@_file
@_json
@with_config
def add(tenant: str, admin: bool, api_keys: Path | None, as_json: bool) -> None:
    """Make a key for TENANT. Its secret is shown this once."""
    _tell(_key_file(load(chosen_config()), api_keys).add(tenant, admin), as_json)


@keys.command("ls")
@_file
@_json
@with_config
def list_(api_keys: Path | None, as_json: bool) -> None:
    """List the keys, without their secrets."""
    found = _key_file(load(chosen_config()), api_keys).listed()
    if as_json:
        click.echo(msgspec.json.encode([_shown(key) for key in found]))
        return
    width = max((len(key.tenant) for key in found), default=0)
    for key in found:
        rights = "admin" if key.admin else "user"
        until = f"  until {_date(key.expires)}" if key.expires is not None else ""
        click.echo(f"{key.id}  {key.tenant:{width}}  {rights:5}  {_date(key.created)}{until}")


@keys.command()
@click.argument("key_id", metavar="ID")
@click.option(
    "--grace",
    type=click.FloatRange(0, 365 * 24),
    default=0,
    help="Hours for which the old secret stays in force.",
)
@_file
@_json
@with_config
def rotate(key_id: str, grace: float, api_keys: Path | None, as_json: bool) -> None:
    """Replace the key ID by a new one of the same tenant, whose memory stays as it is."""
    _tell(_key_file(load(chosen_config()), api_keys).rotate(key_id, grace * 3600), as_json)


@keys.command("rm")
@click.argument("key_id", metavar="ID")
@_file
@with_config
def remove(key_id: str, api_keys: Path | None) -> None:
    """Put the key ID out of force. The memory of its tenant stays."""
    gone = _key_file(load(chosen_config()), api_keys).remove(key_id)
    click.echo(f"key {gone.id} of {gone.tenant} is out of force")


def _key_file(settings: Settings, named: Path | None) -> "KeyFile":
    from agentcache.adapters.clock import SystemClock
    from agentcache.adapters.disk.key_file import KeyFile

    return KeyFile(named or settings.api_keys or settings.home / NAME, SystemClock())


def _tell(made: "tuple[Key, str]", as_json: bool) -> None:
    key, secret = made
    if as_json:
        click.echo(msgspec.json.encode(_shown(key) | {"secret": secret}))
        return
    click.echo(f"key {key.id} of {key.tenant}; this is shown once:", err=True)
    click.echo(secret)


def _shown(key: "Key") -> dict[str, object]:
    shown = msgspec.structs.asdict(key)
    del shown["digest"]
    return shown


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
