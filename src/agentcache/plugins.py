"""Adapters that other packages bring along, found by their entry points.

A package offers an adapter under the group of its port; a setting chooses it by name:

    [project.entry-points."agentcache.segment_stores"]
    sqlite = "agentcache_sqlite:open_store"
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pkgutil import resolve_name
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from agentcache.domain.errors import AdapterError

if TYPE_CHECKING:
    from agentcache.ports.codec import Codec

_Made = TypeVar("_Made")

# By the name of the part: the group of its entry points, and where to find what has to come out:
# settings need these names, and must not wait for what the ports import.
_PORTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "clock": ("agentcache.clocks", "agentcache.ports.clock.Clock"),
        "codec": ("agentcache.codecs", "agentcache.ports.codec.Codec"),
        "engine": ("agentcache.engines", "agentcache.ports.engine.Engine"),
        "model_source": ("agentcache.model_sources", "agentcache.ports.model_source.ModelSource"),
        "segments": ("agentcache.segment_stores", "agentcache.ports.segment_store.SegmentStore"),
        "sessions": ("agentcache.session_stores", "agentcache.ports.session_store.SessionStore"),
        "telemetry": ("agentcache.telemetry", "agentcache.ports.telemetry.Telemetry"),
        "tokenizer": ("agentcache.tokenizers", "agentcache.ports.tokenizer.Tokenizer"),
    }
)
BUNDLED_CODECS = ("native", "f16", "q8", "q4", "k8v4")


def parse_choices(text: str) -> Mapping[str, str]:
    """Read `PORT=NAME,PORT=NAME`. Raises ValueError, saying what to write, for anything else."""
    chosen: dict[str, str] = {}
    for part in filter(None, (word.strip() for word in text.split(","))):
        port, sign, name = (word.strip() for word in part.partition("="))
        if not sign or not name:
            raise ValueError(f"{part!r} is no choice: write PORT=NAME, e.g. segments=sqlite")
        if port not in _PORTS or port == "codec":
            known = ", ".join(one for one in _PORTS if one != "codec")
            raise ValueError(f"there is no port {port!r} to choose for; there are {known}")
        if port in chosen:
            raise ValueError(f"{port} is chosen twice: {chosen[port]!r} and {name!r}")
        chosen[port] = name
    return chosen


def offered(port: str) -> tuple[str, ...]:
    """The names under which installed packages offer an adapter of `port`. Imports none of them."""
    return tuple(sorted({one.name for one in _entries(port)}))


def plugged(
    port: str, choices: str, bundled: Callable[[], _Made], given: Iterable[object] = ()
) -> _Made:
    """The adapter of `port` that `choices` name, made from `given`, or else the bundled one.

    Raises AdapterError as `made` does.
    """
    name = parse_choices(choices).get(port)
    return bundled() if name is None else made(port, name, *given)


def codec(name: str) -> "Codec":
    """The codec called `name`, bundled or not. Raises AdapterError for one that there is not."""
    from agentcache.adapters.codecs import CODECS

    if name in CODECS:
        return CODECS[name]
    found: Codec = made("codec", name)
    if found.name != name:
        problem = f"it calls itself {found.name!r}, which tells whose rows are whose"
        raise AdapterError("codec", name, problem, _ask(_entry("codec", name)))
    return found


def codecs() -> "dict[str, Callable[[], Codec]]":
    """What makes each of the codecs that there are, the bundled ones first. Makes none of them."""
    return {name: partial(codec, name) for name in (*BUNDLED_CODECS, *offered("codec"))}


def made(port: str, name: str, *given: object) -> Any:
    """What the entry point `name` of `port` makes from `given`.

    Raises AdapterError, naming who offers it, when there is none, when it breaks, or when what
    comes out lacks methods of the port.
    """
    entry = _entry(port, name)
    try:
        adapter = entry.load()(*given)
    except AdapterError:
        raise
    except Exception as error:  # somebody else's code
        problem = f"it cannot be made: {type(error).__name__}: {error}"
        raise AdapterError(port, name, problem, _ask(entry)) from error
    wanted = (one for one in dir(resolve_name(_PORTS[port][1])) if not one.startswith("_"))
    if missing := [one for one in wanted if not hasattr(adapter, one)]:
        raise AdapterError(port, name, f"it lacks {', '.join(missing)}", _ask(entry))
    return adapter


def _entries(port: str) -> Iterable[EntryPoint]:
    return entry_points(group=_PORTS[port][0])


def _entry(port: str, name: str) -> EntryPoint:
    found = {(_origin(one), one.value): one for one in _entries(port) if one.name == name}
    if not found:
        bundled = BUNDLED_CODECS if port == "codec" else ()
        known = ", ".join((*bundled, *offered(port))) or "none installed"
        raise AdapterError(port, name, "there is none of this name", f"There are: {known}")
    if len(found) > 1:
        whose = " and ".join(sorted(origin for origin, _ in found))
        raise AdapterError(port, name, f"{whose} both offer it", "Uninstall one of them")
    return next(iter(found.values()))


def _origin(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unnamed package"


def _ask(entry: EntryPoint) -> str:
    return f"It is {entry.value} of {_origin(entry)}: mend, update or uninstall that"
