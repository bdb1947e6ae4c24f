"""Options of commands, made from the settings."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import click
import typed_settings as ts
from typed_settings.types import LoadedSettings, OptionList, SettingsClass

from agentcache.settings import Settings, converter, default_config, loaders

_CONFIG = "agentcache.config"
_Command = TypeVar("_Command", bound=Callable[..., None])


def with_settings(command: _Command) -> _Command:
    """Give `command` an option for every setting, and the resulting Settings as first argument."""
    options = ts.click_options(
        Settings, [_WhenInvoked()], converter=converter(), reload_settings_on_invoke=True
    )
    return with_config(options(command))


def with_config(command: _Command) -> _Command:
    """Give `command` the option --config."""
    return click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help=f"TOML file with settings. Without it: {default_config()}, if there is one.",
        expose_value=False,
        is_eager=True,
        callback=_remember,
    )(command)


def chosen_config() -> Path | None:
    """What --config names in the command that is running."""
    config: Path | None = click.get_current_context().meta[_CONFIG]
    return config


def _remember(context: click.Context, _option: click.Parameter, config: Path | None) -> None:
    context.meta[_CONFIG] = config


class _WhenInvoked:
    """Reads file and environment when a command runs: its help must not depend on them."""

    def __call__(
        self, settings_cls: SettingsClass, options: OptionList
    ) -> Iterable[LoadedSettings]:
        context = click.get_current_context(silent=True)
        if context is None or _CONFIG not in context.meta:
            return
        for loader in loaders(context.meta[_CONFIG]):
            loaded = loader(settings_cls, options)
            yield from (loaded,) if isinstance(loaded, LoadedSettings) else loaded
