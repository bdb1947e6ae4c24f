"""Makes the live caches of one model, and hands them to it in the shape in which it takes them."""

from collections.abc import Iterator, Sequence

import mlx.core as mx
from attrs import field, frozen
from mlx_lm.models.cache import ArraysCache, ChunkedKVCache, make_prompt_cache

from agentcache.adapters.mlx.arrays import ArrayCache
from agentcache.adapters.mlx.buffers import BufferCache
from agentcache.adapters.mlx.live import LiveCache, Part
from agentcache.adapters.mlx.ragged import LatentRaggedLeaf, RaggedLeaf
from agentcache.adapters.mlx.spec import LanguageModel, leaves, with_leaves
from agentcache.adapters.mlx.states import StateBatch, States
from agentcache.adapters.mlx.whole import Wholes
from agentcache.adapters.mlx.window_leaf import (
    AnyWindow,
    ArrayChunk,
    ArrayWindow,
    BufferChunk,
    BufferWindow,
)
from agentcache.adapters.mlx.windows import Windows
from agentcache.domain.spec import CacheSpec, LayerKind
from agentcache.mapped_memory import MappedMemory


class ModelCache(list[object]):
    """What a model takes as its cache, and whose it is: told when a forward is through."""

    def __init__(
        self, shape: list[object], caches: Sequence[LiveCache], batches: Sequence[StateBatch] = ()
    ) -> None:
        super().__init__(shape)
        self._caches, self._batches = caches, batches

    def ran(self, count: int) -> None:
        """The model has run `count` tokens of each sequence."""
        for batch in self._batches:
            batch.give_back()
        for cache in self._caches:
            cache.ran(count)


@frozen(eq=False)
class MLXCacheAdapter:
    """Live caches of `spec`: in numpy buffers (the CPU path), or in MLX arrays.

    `shape` is the model's own cache list, never filled, whose nesting the model expects. `latent`
    says that in a batch its rows come as those of latent attention. Buffers lie in `memory`.
    """

    spec: CacheSpec
    shape: Sequence[object]
    in_buffers: bool
    latent: bool = False
    memory: MappedMemory = field(factory=MappedMemory.plain)
    _unfilled: Sequence[object] = field(init=False)

    @_unfilled.default
    def _leaves_of_shape(self) -> Sequence[object]:
        return tuple(leaves(self.shape))

    @classmethod
    def of(cls, model: LanguageModel, spec: CacheSpec, in_buffers: bool) -> "MLXCacheAdapter":
        """The adapter to `model`."""
        return cls(spec, make_prompt_cache(model), in_buffers and spec.dtype == "float32")

    @property
    def count(self) -> int:
        """How many caches the model has."""
        return len(self._unfilled)

    def empty(self, capacity: int) -> LiveCache:
        """Caches of a new sequence with room for `capacity` rows, or MemoryError."""
        return LiveCache(capacity, tuple(self._parts(capacity)))

    def single(self, cache: LiveCache) -> ModelCache:
        """What the model takes as its cache to run one sequence."""
        return ModelCache(with_leaves(self.shape, iter(cache.leaves)), [cache])

    def ragged(self, caches: Sequence[LiveCache]) -> ModelCache:
        """What the model takes as its cache to run one token of each sequence.

        Raises TypeError where a layer is kept whole.
        """
        offset = mx.array([cache.length for cache in caches])
        kind = LatentRaggedLeaf if self.latent else RaggedLeaf
        found: list[RaggedLeaf | StateBatch] = []
        for members in zip(*(cache.leaves for cache in caches), strict=True):
            if isinstance(members[0], ArraysCache):
                found.append(
                    StateBatch.of([one for one in members if isinstance(one, ArraysCache)])
                )
            else:
                found.append(kind.of(members, offset))
        batches = [one for one in found if isinstance(one, StateBatch)]
        given = (one.leaf if isinstance(one, StateBatch) else one for one in found)
        return ModelCache(with_leaves(self.shape, given), caches, batches)

    def _parts(self, capacity: int) -> Iterator[Part]:
        kinds = {layer.kind for layer in self.spec.layers}
        if LayerKind.FULL in kinds:
            if self.in_buffers:
                yield BufferCache.of(self.spec, capacity, self.memory)
            else:
                yield ArrayCache.of(self.spec, capacity)
        if LayerKind.WINDOW in kinds:
            yield Windows(self.spec, [self._window(one, capacity) for one in self._windowed])
        if LayerKind.STATE in kinds:
            yield States.of(self.spec)
        if LayerKind.WHOLE in kinds:
            kept = self.spec.layers_of(LayerKind.WHOLE)
            yield Wholes.of(self.spec, [self._unfilled[layer] for layer in kept])

    @property
    def _windowed(self) -> Sequence[int]:
        return self.spec.layers_of(LayerKind.WINDOW)

    def _window(self, layer: int, capacity: int) -> AnyWindow:
        window = self.spec.layers[layer].window or 1
        if isinstance(self._unfilled[layer], ChunkedKVCache):
            return (BufferChunk if self.in_buffers else ArrayChunk)(window, capacity)
        return (BufferWindow if self.in_buffers else ArrayWindow)(window, capacity)
