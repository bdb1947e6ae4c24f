"""mlx-lm's own `LRUPromptCache`, with a memory behind it that outlives the process."""

import weakref
from collections.abc import Sequence
from typing import Protocol

from mlx_lm.models.cache import LRUPromptCache

from agentcache.adapters.mlx.prompt_cache import PromptCache


class Memory(Protocol):
    """Where caches are found again that are not in RAM. Nothing of it raises for a miss."""

    def known(self, model: object, ids: Sequence[int]) -> int:
        """How many rows `fetch` would restore."""
        ...

    def fetch(self, model: object, ids: Sequence[int]) -> tuple[PromptCache, int] | None:
        """A prompt cache with the longest known prefix, and its length; None for a miss."""
        ...

    def insert(self, model: object, ids: Sequence[int], cache: Sequence[object]) -> None:
        """Keep the rows of `ids`, which `cache` holds."""
        ...

    def flush(self) -> None:
        """Wait until everything has been written."""
        ...

    def close(self) -> None:
        """Write everything, then end."""
        ...


class PersistentLRUPromptCache(LRUPromptCache):
    """Everything that mlx-lm's does, and what RAM does not have comes from `memory`.

    Length, bytes and statistics are those of the caches in RAM, as are `max_size`, `max_bytes` and
    `trim_to`: what leaves RAM stays in the memory. A prefix from there always leaves a token to
    run. It is closed when it is collected or the process exits, or by `close`.
    """

    def __init__(self, memory: Memory, max_size: int = 10, max_bytes: int = 1 << 63) -> None:
        super().__init__(max_size, max_bytes)
        self._memory = memory
        self.close = weakref.finalize(self, memory.close)

    def fetch_nearest_cache(
        self, model: object, tokens: list[int]
    ) -> tuple[PromptCache | None, list[int]]:
        """The cache of the longest prefix of `tokens` and what is left of them to run."""
        cache, rest = super().fetch_nearest_cache(model, tokens)
        if self._memory.known(model, tokens) <= len(tokens) - len(rest):
            return cache, rest
        found = self._memory.fetch(model, tokens)
        if found is None or found[1] <= len(tokens) - len(rest):
            return cache, rest
        return found[0], tokens[found[1] :]

    def insert_cache(
        self,
        model: object,
        tokens: list[int],
        prompt_cache: PromptCache,
        *,
        cache_type: str = "assistant",
    ) -> None:
        """Keep `prompt_cache`, which holds the rows of `tokens`, here and in the memory."""
        super().insert_cache(model, tokens, prompt_cache, cache_type=cache_type)
        self._memory.insert(model, tokens, prompt_cache)

    def flush(self) -> None:
        """Wait until the memory is on disk."""
        self._memory.flush()
