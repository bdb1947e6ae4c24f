"""`CacheSpec` of a model, read off the cache objects that the model makes for itself."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import mlx.core as mx
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    KVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from agentcache.domain.errors import ModelError
from agentcache.domain.spec import CacheSpec, LayerKind, LayerSpec, StateArray

_PROBE = [[0, 1]]


class LanguageModel(Protocol):
    """A model of mlx-lm: token ids [B, L] in, logits [B, L, vocabulary] out; fills `cache`."""

    def __call__(self, inputs: mx.array, cache: list[object] | None) -> mx.array:
        """One forward pass; without a cache, of a whole sequence."""
        ...


def probed(model: LanguageModel, name: str) -> tuple[CacheSpec, int]:
    """The spec of `model`'s caches and the size of its vocabulary, learnt by running two tokens.

    Raises ModelError for caches that are not understood.
    """
    caches: list[object] = make_prompt_cache(model)
    logits = model(mx.array(_PROBE), cache=caches)
    mx.eval(logits, [array for leaf in leaves(caches) for array in _arrays(leaf)])
    return described(caches, name), logits.shape[-1]


def described(caches: Sequence[object], name: str) -> CacheSpec:
    """The spec of caches that a model has filled. Raises ModelError as `probed` does."""
    layers = tuple(_layer(leaf, name) for leaf in leaves(caches))
    return CacheSpec(layers, _row_dtype(caches, name))


def leaves(caches: Iterable[object]) -> Iterator[object]:
    """The caches that hold arrays, in order; a `CacheList` is taken apart."""
    for cache in caches:
        if isinstance(cache, CacheList):
            yield from leaves(cache.caches)
        else:
            yield cache


def with_leaves(caches: Iterable[object], replacements: Iterator[object]) -> list[object]:
    """`caches` in the shape in which the model takes them, each leaf replaced by the next one."""
    return [
        CacheList(*with_leaves(cache.caches, replacements))  # type: ignore[no-untyped-call]
        if isinstance(cache, CacheList)
        else next(replacements)
        for cache in caches
    ]


def _layer(leaf: object, name: str) -> LayerSpec:
    if isinstance(leaf, ArraysCache):
        return LayerSpec(LayerKind.STATE, state=tuple(_state(array) for array in _arrays(leaf)))
    if not isinstance(leaf, KVCache | RotatingKVCache | ChunkedKVCache):
        raise unsupported(leaf, name)
    keys, values = _arrays(leaf)
    heads, key_dim, value_dim = keys.shape[1], keys.shape[-1], values.shape[-1]
    if isinstance(leaf, KVCache):
        return LayerSpec.full(heads, key_dim, value_dim)
    if isinstance(leaf, ChunkedKVCache):
        return LayerSpec(LayerKind.WINDOW, heads, key_dim, value_dim, leaf.chunk_size)
    if leaf.keep:
        raise ModelError(name, f"a rotating cache that keeps its first {leaf.keep} rows")
    return LayerSpec(LayerKind.WINDOW, heads, key_dim, value_dim, leaf.max_size)


def unsupported(leaf: object, name: str) -> ModelError:
    """The error for a cache class that cannot be used."""
    return ModelError(name, f"cache class {type(leaf).__name__} is not supported yet")


def dtype_name(array: mx.array) -> str:
    """The name of an array's dtype as specs have it: `float32`, `bfloat16`, ..."""
    return str(array.dtype).rpartition(".")[2]


def _arrays(leaf: object) -> list[mx.array]:
    if isinstance(leaf, ArraysCache):
        found: Iterable[object] = leaf.cache
    else:
        found = (getattr(leaf, "keys", None), getattr(leaf, "values", None))
    return [array for array in found if isinstance(array, mx.array)]


def _state(array: mx.array) -> StateArray:
    return StateArray(tuple(array.shape[1:]), dtype_name(array))


def _row_dtype(caches: Iterable[object], name: str) -> str:
    indexed = [leaf for leaf in leaves(caches) if not isinstance(leaf, ArraysCache)]
    dtypes = {dtype_name(array) for leaf in indexed for array in _arrays(leaf)}
    if len(dtypes) > 1:
        raise ModelError(name, f"its layers cache different dtypes: {', '.join(sorted(dtypes))}")
    return dtypes.pop() if dtypes else "float32"
