"""Every setting: its default, its help, its limits, and where its value comes from.

What is set first wins: a command line option, a variable AGENTCACHE_<NAME>, the TOML file, the
default.
"""

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import typed_settings as ts
from attrs import Attribute, field, frozen
from limits import RateLimitItem, parse
from typed_settings import constants
from typed_settings.converters import Converter
from typed_settings.exceptions import TsError
from typed_settings.loaders import FileFormat, Loader

from agentcache.plugins import BUNDLED_CODECS, offered, parse_choices

ENV_PREFIX = "AGENTCACHE_"
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", 1)
    for suffix, base in (("", 1024), ("B", 1000), ("IB", 1024))
}
_Number = TypeVar("_Number", bound=float)


class Bytes(int):
    """A number of bytes; written with a unit as `512MB` (10^6), `512MiB` or `512M` (2^20)."""

    def __str__(self) -> str:
        for unit in ("TB", "GB", "MB", "KB"):
            if self >= _UNITS[unit]:
                return f"{self / _UNITS[unit]:.4g}{unit}"
        return f"{int(self)}B"


def parse_size(size: int | str) -> Bytes:
    """Read a size. Raises ValueError, saying how to write it, for anything else."""
    if not isinstance(size, str):
        return Bytes(size)
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([a-zA-Z]*)\s*", size, re.ASCII)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"{size!r} is not a size: write it like 512MB, 2GiB or 1000000")
    return Bytes(round(float(match[1]) * _UNITS[match[2].upper()]))


def _between(
    low: _Number, high: _Number
) -> "Callable[[object, Attribute[Any], _Number | None], None]":
    def check(_instance: object, attribute: "Attribute[Any]", value: _Number | None) -> None:
        if value is not None and not low <= value <= high:
            raise ValueError(f"{attribute.name} is {value}: set it to {low} up to {high}")

    return check


def _one_of(*words: str) -> Callable[[object, "Attribute[str]", str], None]:
    def check(_instance: object, attribute: "Attribute[str]", value: str) -> None:
        if value not in words:
            raise ValueError(f"{attribute.name} is {value!r}: set it to one of {', '.join(words)}")

    return check


def _not_empty(_instance: object, attribute: "Attribute[str]", value: str) -> None:
    if not value.strip():
        raise ValueError(f"{attribute.name} is empty: give it a value or leave it out")


def _expanded(path: str | Path) -> Path:
    return Path(path).expanduser()


def quarter_of_memory() -> Bytes:
    """A quarter of the memory that this process may use: the machine's, or its container's."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # no control group, or one without a limit ("max")
        memory = min(memory, int(_CGROUP_LIMIT.read_text()))
    return Bytes(memory // 4)


def _help(text: str, **click: object) -> dict[str, object]:
    about = {"help": text, constants.CLICK_METADATA_KEY: {"help": text, **click}}
    return {constants.METADATA_KEY: about}


def _unset() -> int | None:
    """A default as a factory: typed-settings lets a plain None win over file and environment."""
    return None


def _no_path() -> Path | None:
    return None


def _maybe_expanded(path: str | Path | None) -> Path | None:
    return _expanded(path) if path else None


def words(text: str) -> tuple[str, ...]:
    """The words of a list with commas."""
    return tuple(word for word in (part.strip() for part in text.split(",")) if word)


def _rate(_instance: object, attribute: "Attribute[str]", value: str) -> None:
    try:
        parse_rate(value)
    except ValueError:
        problem = f"{attribute.name} is {value!r}: write it like 60/minute or 5/second"
        raise ValueError(problem) from None


def parse_rate(rate: str) -> RateLimitItem | None:
    """Read a rate like `60/minute`; None for none. Raises ValueError for anything else."""
    return parse(rate) if rate else None


def _origins(_instance: object, attribute: "Attribute[str]", value: str) -> None:
    for origin in words(value):
        if re.fullmatch(r"https?://[^/*\s]+", origin) is None:
            problem = f"{attribute.name} has {origin!r}: write origins like https://example.com"
            raise ValueError(problem)


def _known_codec(_instance: object, attribute: "Attribute[str]", value: str) -> None:
    if value not in BUNDLED_CODECS:
        _one_of(*BUNDLED_CODECS, *offered("codec"))(_instance, attribute, value)


def _plugins(_instance: object, attribute: "Attribute[str]", value: str) -> None:
    try:
        parse_choices(value)
    except ValueError as error:
        raise ValueError(f"{attribute.name}: {error}") from None


_COUNT = _between(1, 2**31)
_SECONDS = _between(0.0, 86_400.0)
_ROOM = _between(Bytes(1_000_000), Bytes(2**50))


@frozen(kw_only=True)
class Settings:
    """How agentcache runs. Raises ValueError, saying what to do, for a value that cannot work."""

    host: str = field(
        default="127.0.0.1",
        validator=_not_empty,
        metadata=_help("Address to listen on; one that others can reach takes API keys."),
    )
    port: int = field(
        default=8080,
        validator=_between(0, 65_535),
        metadata=_help("Port to listen on; 0 picks a free one."),
    )
    api_keys: Path | None = field(
        factory=_no_path,
        converter=_maybe_expanded,
        metadata=_help(
            "File of API keys; default: keys.json in the home, if there is one.", show_default=False
        ),
    )
    allowed_hosts: str = field(
        default="",
        metadata=_help("Host names that the server answers to beside localhost, with commas."),
    )
    cors_origins: str = field(
        default="",
        validator=_origins,
        metadata=_help("Origins that browsers may send requests from, exact, with commas."),
    )
    rate_limit: str = field(
        default="",
        validator=_rate,
        metadata=_help("Turns that a tenant may ask for, like 60/minute; default: any number."),
    )
    agent_rate_limit: str = field(
        default="",
        validator=_rate,
        metadata=_help("Turns that each agent may ask for, like 10/minute; default: any number."),
    )
    home: Path = field(
        default=Path("~/.agentcache"),
        converter=_expanded,
        metadata=_help("Folder of the agents' memory and of converted models."),
    )
    model: str = field(
        default="smollm2-135m",
        validator=_not_empty,
        metadata=_help(
            "Model to serve: a name, a local MLX folder or GGUF file, or a Hugging Face id."
        ),
    )
    codec: str = field(
        default="q8",
        validator=_known_codec,
        metadata=_help(
            "How rows of new agents are encoded in RAM and on disk: native (bit for bit), f16, q8, "
            "k8v4, q4 or a plug-in's."
        ),
    )
    plugins: str = field(
        default="",
        validator=_plugins,
        metadata=_help("Plug-ins to use instead of what is bundled: PORT=NAME, with commas."),
    )
    memory_budget: Bytes = field(
        factory=quarter_of_memory,
        converter=parse_size,
        validator=_ROOM,
        metadata=_help(
            "RAM for agents' memory, the model itself not counted.",
            type=str,
            metavar="SIZE",
            show_default="a quarter of the machine's",
        ),
    )
    disk_cap: Bytes = field(
        default=parse_size("20GB"),
        converter=parse_size,
        validator=_ROOM,
        metadata=_help("Disk space for agents' memory.", type=str, metavar="SIZE"),
    )
    disk_floor: Bytes = field(
        default=parse_size("1GB"),
        converter=parse_size,
        validator=_between(Bytes(0), Bytes(2**50)),
        metadata=_help("Disk space that is left free, whoever fills it.", type=str, metavar="SIZE"),
    )
    idle_ttl: float | None = field(
        factory=_unset,
        validator=_between(1.0, 10.0 * 365 * 86_400),
        metadata=_help(
            "Seconds after which an agent that nobody talks to is forgotten; default: never.",
            show_default=False,
        ),
    )
    max_queue: int = field(
        default=64, validator=_COUNT, metadata=_help("Turns that may wait; more are refused (429).")
    )
    max_batch: int = field(default=8, validator=_COUNT, metadata=_help("Turns that run at once."))
    queue_timeout: float = field(
        default=60.0,
        validator=_SECONDS,
        metadata=_help("Seconds a turn may wait before it is refused."),
    )
    durability: Literal["turn", "behind"] = field(
        default="turn",
        validator=_one_of("turn", "behind"),
        metadata=_help(
            "Answer after a turn is on disk (turn), or write it a little later (behind)."
        ),
    )
    prefill_chunk: int = field(
        default=128,
        validator=_COUNT,
        metadata=_help(
            "Prompt tokens that are run in a step while other turns are being answered, at most."
        ),
    )
    step_time: float = field(
        default=0.5,
        validator=_between(0.001, 60.0),
        metadata=_help(
            "Seconds that turns being answered wait for a piece of another's prompt, at most; "
            "pieces get smaller until that holds."
        ),
    )
    max_body: Bytes = field(
        default=parse_size("16MB"),
        converter=parse_size,
        validator=_between(Bytes(1_000), Bytes(2**31)),
        metadata=_help(
            "Largest request body; larger ones are refused (413).", type=str, metavar="SIZE"
        ),
    )
    threads: int | None = field(
        factory=_unset,
        validator=_between(1, 4_096),
        metadata=_help(
            "Threads for matrix products; default: one for each core.", show_default=False
        ),
    )
    cpu_path: bool = field(
        default=True,
        metadata=_help("Use the faster kernels for Linux without a GPU, where they apply."),
    )
    canary: bool = field(
        default=False,
        metadata=_help(
            "Compare what a restored agent says with what it said before the restart, once each."
        ),
    )
    context: int | None = field(
        factory=_unset,
        validator=_COUNT,
        metadata=_help("Longest conversation in tokens; default: the model's.", show_default=False),
    )
    max_messages: int = field(
        default=10_000,
        validator=_COUNT,
        metadata=_help("Messages that a request may have; more are refused (400)."),
    )
    log_format: Literal["human", "json"] = field(
        default="human",
        validator=_one_of("human", "json"),
        metadata=_help("How log lines are written."),
    )
    log_level: Literal["debug", "info", "warning", "error"] = field(
        default="info",
        validator=_one_of("debug", "info", "warning", "error"),
        metadata=_help("Least important log lines to write."),
    )
    shutdown_timeout: float = field(
        default=30.0,
        validator=_SECONDS,
        metadata=_help("Seconds that running turns get when asked to stop."),
    )


def default_config() -> Path:
    """The TOML file that is read when no other is named; it need not exist."""
    folder = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(folder).expanduser() / "agentcache" / "config.toml"


def loaders(config: Path | None = None) -> Sequence[Loader]:
    """What settings are read from: the file `config` (which must exist) or the default one, then
    the environment."""
    file = f"!{config}" if config else default_config()
    formats: dict[str, FileFormat] = {"*": ts.TomlFormat(None)}
    return (ts.FileLoader(formats, [file]), ts.EnvLoader(ENV_PREFIX))


def converter() -> Converter:
    """Turns text into the types of settings; paths stay as written, so that `~` is understood."""
    return ts.default_converter(resolve_paths=False)


def load(config: Path | None = None) -> Settings:
    """The settings of file and environment. Raises TsError; `problems` says what is wrong."""
    return ts.load_settings(Settings, loaders(config), converter=converter())


def problems(error: TsError) -> str:
    """What is wrong with the settings, a line for each."""
    if not isinstance(error, ExceptionGroup):
        return str(error)
    return "\n".join(_problem(str(each)) for each in error.exceptions)


def _problem(text: str) -> str:
    """The reason within what typed-settings says, without the names of its classes."""
    if found := re.search(r"value (.*) for option '(\w+)' .*?: \w+\((['\"])(.*)\3\)$", text, re.S):
        value, option, _, reason = found.groups()
        return f"{option} cannot be {value}: {reason}"
    return "\n".join(re.findall(r"^- \w+: (.*)$", text, re.M)) or text
