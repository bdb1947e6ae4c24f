"""Persistent KV-cache memory for LLM agents on MLX.

>>> import agentcache
>>> with agentcache.open() as cache:
...     agent = cache.agent("researcher", system="You are brief.")
...     answer = agent.say("What is a KV cache?", max_tokens=8)
>>> answer.usage.completion_tokens
8

Nothing heavy is imported before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentcache.agent_view import AgentView as AgentView
    from agentcache.domain import errors as errors
    from agentcache.domain.access import Access as Access
    from agentcache.domain.conversation import Message as Message
    from agentcache.domain.request import Finish as Finish
    from agentcache.domain.request import Miss as Miss
    from agentcache.domain.request import Tier as Tier
    from agentcache.library.answer import Answer as Answer
    from agentcache.library.asynchronous import AsyncAgent as AsyncAgent
    from agentcache.library.asynchronous import AsyncAgentCache as AsyncAgentCache
    from agentcache.library.entrance import open as open
    from agentcache.library.entrance import open_async as open_async
    from agentcache.library.mounted import asgi as asgi
    from agentcache.library.stream import AsyncStream as AsyncStream
    from agentcache.library.synchronous import Agent as Agent
    from agentcache.library.synchronous import AgentCache as AgentCache
    from agentcache.library.synchronous import Stream as Stream
    from agentcache.prompt_cache import PromptCaches as PromptCaches
    from agentcache.prompt_cache import lru_prompt_cache as lru_prompt_cache
    from agentcache.prompt_cache import prompt_caches as prompt_caches
    from agentcache.settings import Settings as Settings

_PLACES = {
    "Access": "domain.access",
    "Agent": "library.synchronous",
    "AgentCache": "library.synchronous",
    "AgentView": "agent_view",
    "Answer": "library.answer",
    "AsyncAgent": "library.asynchronous",
    "AsyncAgentCache": "library.asynchronous",
    "AsyncStream": "library.stream",
    "Finish": "domain.request",
    "Message": "domain.conversation",
    "Miss": "domain.request",
    "PromptCaches": "prompt_cache",
    "Settings": "settings",
    "Stream": "library.synchronous",
    "Tier": "domain.request",
    "asgi": "library.mounted",
    "lru_prompt_cache": "prompt_cache",
    "open": "library.entrance",
    "open_async": "library.entrance",
    "prompt_caches": "prompt_cache",
}
_MODULES = {"errors": "domain.errors"}

__all__ = [*_PLACES, *_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f"agentcache.{_MODULES[name]}")
    if name in _PLACES:
        return getattr(import_module(f"agentcache.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'agentcache' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
