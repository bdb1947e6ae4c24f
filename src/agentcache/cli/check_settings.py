"""Where settings come from, and what among them nobody reads."""

import difflib
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path

from attrs import fields_dict

from agentcache.adapters.models.default_model import WHEEL_VARIABLE
from agentcache.cli.finding import Finding
from agentcache.cli.keys import ONE_KEY
from agentcache.settings import ENV_PREFIX, Settings, default_config

_NAMES = frozenset(fields_dict(Settings))
_OTHERS = frozenset({ONE_KEY, WHEEL_VARIABLE})


def check_settings(config: Path | None) -> Iterator[Finding]:
    """The file, its keys, and the environment's variables."""
    path = config or default_config()
    yield from _file(path)
    for variable in sorted(os.environ):
        name = variable.removeprefix(ENV_PREFIX).lower()
        if variable.startswith(ENV_PREFIX) and variable not in _OTHERS and name not in _NAMES:
            message = f"{variable} in the environment is no setting"
            yield Finding("settings", "warning", message, f"Unset it{_meant(name, ENV_PREFIX)}")


def _file(path: Path) -> Iterator[Finding]:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        yield Finding("settings", "ok", f"no file: {path} is not there")
        return
    except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
        yield Finding("settings", "problem", f"{path} cannot be read: {error}", "Correct it")
        return
    yield Finding("settings", "ok", f"{path} is in use")
    for key in found:
        if key.replace("-", "_") not in _NAMES:
            message = f"{key!r} in {path} is no setting"
            yield Finding("settings", "warning", message, f"Delete it{_meant(key)}")


def _meant(name: str, prefix: str = "") -> str:
    close = difflib.get_close_matches(name, _NAMES, 1)
    told = f"{prefix}{close[0].upper() if prefix else close[0]}" if close else ""
    return f", or did you mean {told}?" if told else ""
