"""Where programs come in: `agentcache.open` and `agentcache.open_async`."""

from functools import partial
from os import PathLike
from typing import Any

from agentcache.library.asynchronous import AsyncOpening
from agentcache.library.opening import Adapters, Running, settings_of
from agentcache.library.synchronous import AgentCache


def open(
    model: str | None = None,
    home: str | PathLike[str] | None = None,
    *,
    adapters: Adapters | None = None,
    **settings: Any,
) -> AgentCache:
    """Open a home and load a model, which is fetched first if it has to be.

    `model` is a name, a local MLX folder or GGUF file, or a Hugging Face id. `settings` are those
    of `Settings`, sizes as numbers or texts ("2GiB"); what is not given comes from
    AGENTCACHE_<NAME> in the environment, else from the TOML file of the `agentcache` command, else
    is the default.
    `adapters` replaces parts by what the functions in it return: see docs/library.md.

    Raises ValueError for a setting that cannot work, HomeLocked when another process (or this one)
    has opened the home, HomeError, ModelError; nothing is left open then.

    >>> with agentcache.open(memory_budget="64MB") as cache:
    ...     agent = cache.agent("ada", system="You answer in one word.")
    ...     first = agent.say("Yes or no?", max_tokens=4, temperature=0)
    ...     second = agent.say("And now?", max_tokens=4, temperature=0)
    ...     [message.role for message in agent.history]
    ['system', 'user', 'assistant', 'user', 'assistant']
    >>> second.cache.cached_tokens > first.usage.prompt_tokens
    True
    """
    given = settings_of({**settings, "model": _text(model), "home": home})
    return AgentCache(Running.open(given, adapters or {}))


def open_async(
    model: str | None = None,
    home: str | PathLike[str] | None = None,
    *,
    adapters: Adapters | None = None,
    **settings: Any,
) -> AsyncOpening:
    """As `open`, for programs with an event loop: `async with` it, or await it and close it.

    >>> async def main():
    ...     async with agentcache.open_async() as cache:
    ...         async with cache.agent("eve").stream("Hello!", max_tokens=4) as stream:
    ...             pieces = [piece async for piece in stream]
    ...         return stream.answer.text == "".join(pieces)
    >>> asyncio.run(main())
    True
    """
    given = settings_of({**settings, "model": _text(model), "home": home})
    return AsyncOpening(partial(Running.open, given, adapters or {}))


def _text(model: str | PathLike[str] | None) -> str | None:
    return None if model is None else str(model)
