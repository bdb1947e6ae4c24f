"""The HTTP application around a cache that is open, for other ASGI servers to mount."""

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path

from attrs import evolve
from starlette.applications import Starlette

from agentcache.adapters.clock import SystemClock
from agentcache.adapters.disk.key_file import KeyFile
from agentcache.adapters.http.app import Door, create_app
from agentcache.adapters.http.edge import Edge
from agentcache.adapters.memory.keyring import MemoryKeyring
from agentcache.domain.access import Access
from agentcache.library.asynchronous import AsyncAgentCache
from agentcache.library.synchronous import AgentCache
from agentcache.ports.keyring import Keyring
from agentcache.settings import Settings

Keys = str | PathLike[str] | Mapping[str, Access] | Keyring


def asgi(
    cache: AgentCache | AsyncAgentCache,
    *,
    api_keys: Keys | None = None,
    metrics: bool = True,
    allowed_hosts: Iterable[str] = (),
    cors_origins: Iterable[str] = (),
    rate_limit: str = "",
    agent_rate_limit: str = "",
    max_body: int | str | None = None,
) -> Starlette:
    """The application, ready to be mounted under any prefix; it starts and stops nothing itself.

    The cache has to be open while the host serves: open and close it in the host's lifespan. Turns
    of HTTP clients and of the library share agents; a client sends the whole conversation, which
    becomes the agent's.

    `api_keys` is a key file of `agentcache keys`, a mapping from secrets to `Access`, or a
    `Keyring` of your own; without them whoever the host lets in may do everything. The rest is as
    for `agentcache serve`: `/metrics` if `metrics`; the Host headers that are answered to, any
    without `allowed_hosts`; exact origins of browsers; rates like "60/minute"; `max_body` in bytes.
    Nothing is read from the environment. Raises HomeError for a key file that is not there or
    damaged, ValueError or TypeError for a value that cannot work.
    """
    given = Settings(
        allowed_hosts=_listed(allowed_hosts),
        cors_origins=_listed(cors_origins),
        rate_limit=rate_limit,
        agent_rate_limit=agent_rate_limit,
    )
    settings = given if max_body is None else evolve(given, max_body=max_body)
    telemetry = cache.service.telemetry if metrics else None
    edge = Edge.of(cache.service, settings)
    return create_app(edge, telemetry, Door.of(settings, _keyring(api_keys)))


def _keyring(keys: Keys | None) -> Keyring | None:
    if isinstance(keys, Mapping):
        return MemoryKeyring(keys)
    if isinstance(keys, str | PathLike):
        return KeyFile.existing(Path(keys).expanduser(), SystemClock())
    if keys is not None and not callable(getattr(keys, "access", None)):
        raise TypeError(f"api_keys is a file, a mapping or a Keyring, not {type(keys).__name__}")
    return keys


def _listed(names: Iterable[str]) -> str:
    return names if isinstance(names, str) else ",".join(names)
