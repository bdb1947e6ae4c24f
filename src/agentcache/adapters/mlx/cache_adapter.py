"""Makes the live caches of one model, and hands them to it in the shape in which it takes them."""

from collections.abc import Sequence

from attrs import frozen
from mlx_lm.models.cache import KVCache, make_prompt_cache

from agentcache.adapters.mlx.arrays import ArrayCache
from agentcache.adapters.mlx.buffers import BufferCache
from agentcache.adapters.mlx.live import LiveCache
from agentcache.adapters.mlx.ragged import ragged_leaves
from agentcache.adapters.mlx.spec import LanguageModel, leaves, unsupported, with_leaves
from agentcache.domain.spec import CacheSpec


@frozen(eq=False)
class MLXCacheAdapter:
    """Live caches of `spec`: in numpy buffers (the CPU path), or in mlx-lm's own cache objects.

    `shape` is the model's own cache list, never filled, whose nesting the model expects.
    """

    spec: CacheSpec
    shape: Sequence[object]
    in_buffers: bool

    @classmethod
    def of(
        cls, model: LanguageModel, spec: CacheSpec, name: str, in_buffers: bool
    ) -> "MLXCacheAdapter":
        """The adapter to `model`. Raises ModelError when a cache class of it is not supported."""
        shape = make_prompt_cache(model)
        for leaf in leaves(shape):
            if type(leaf) is not KVCache:
                raise unsupported(leaf, name)
        return cls(spec, shape, in_buffers and spec.dtype == "float32")

    def empty(self, capacity: int) -> LiveCache:
        """Caches of a new sequence with room for `capacity` rows, or MemoryError."""
        if self.in_buffers:
            return BufferCache.of(self.spec, capacity)
        return ArrayCache.of(self.spec, capacity)

    def single(self, cache: LiveCache) -> list[object]:
        """What the model takes as its cache to run one sequence."""
        return with_leaves(self.shape, iter(cache.leaves))

    def ragged(self, caches: Sequence[LiveCache]) -> list[object]:
        """What the model takes as its cache to run one token of each sequence."""
        return with_leaves(self.shape, ragged_leaves(caches))
