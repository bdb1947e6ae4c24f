"""`CacheSpec` of a model, read off the cache objects that the model makes for itself."""

from collections import Counter
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

from agentcache.adapters.mlx.arrays import HoldingCache
from agentcache.adapters.mlx.whole import arrays
from agentcache.domain.errors import ModelError
from agentcache.domain.spec import ITEM_BYTES, CacheSpec, LayerKind, LayerSpec, StateArray

_SHORT, _PROBE = (0,), (0, 1, 2, 3)
_USUAL_STEP = 256
_ROW_CACHES = (KVCache, HoldingCache, RotatingKVCache, ChunkedKVCache)


class LanguageModel(Protocol):
    """A model of mlx-lm: token ids [B, L] in, logits [B, L, vocabulary] out; fills `cache`."""

    def __call__(self, inputs: mx.array, cache: list[object] | None) -> mx.array:
        """One forward pass; without a cache, of a whole sequence."""
        ...


def probed(model: LanguageModel, name: str) -> tuple[CacheSpec, int]:
    """The spec of `model`'s caches and the size of its vocabulary, learnt by running a few tokens.

    What is not understood is kept whole, each such layer with its reason. Raises ModelError for a
    model that cannot be run.
    """
    try:
        before, _ = _filled(model, _SHORT)
        after, vocabulary = _filled(model, _PROBE)
    except Exception as error:  # whatever a model does
        raise ModelError(name, f"it cannot be run: {type(error).__name__}: {error}") from error
    return _spec(tuple(leaves(after)), tuple(leaves(before))), vocabulary


def described(caches: Sequence[object], name: str) -> CacheSpec:
    """The spec of caches that a model has filled. Raises ModelError for what is not understood."""
    found = tuple(leaves(caches))
    spec = _spec(found, found)
    for index, layer in enumerate(spec.layers):
        if layer.kind is LayerKind.WHOLE:
            raise ModelError(name, layer.reason or f"layer {index} is not understood")
    return spec


def all_whole(spec: CacheSpec, reason: str) -> CacheSpec:
    """The spec with every layer kept whole, where our own caches do not suit the model."""
    size = ITEM_BYTES[spec.dtype]
    layers = (
        layer if layer.kind is LayerKind.WHOLE else LayerSpec.whole(reason, layer.row_items * size)
        for layer in spec.layers
    )
    return CacheSpec(tuple(layers), spec.dtype)


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


def unsupported(leaf: object, name: str) -> ModelError:
    """The error for a cache class that cannot be used."""
    return ModelError(name, f"cache class {type(leaf).__name__} is not supported yet")


def dtype_name(array: mx.array) -> str:
    """The name of an array's dtype as specs have it: `float32`, `bfloat16`, ..."""
    return str(array.dtype).rpartition(".")[2]


def _filled(model: LanguageModel, ids: Sequence[int]) -> tuple[list[object], int]:
    caches: list[object] = make_prompt_cache(model)
    logits = model(mx.array([ids]), cache=caches)
    mx.eval(logits, [array for leaf in leaves(caches) for array in arrays(leaf)])
    return caches, logits.shape[-1]


def _spec(after: Sequence[object], before: Sequence[object]) -> CacheSpec:
    """The spec of caches, given as they were after some tokens, and after fewer."""
    dtype = _row_dtype(after)
    pairs = zip(after, before, strict=True)
    return CacheSpec(tuple(_layer(leaf, earlier, dtype) for leaf, earlier in pairs), dtype)


def _layer(leaf: object, earlier: object, dtype: str) -> LayerSpec:
    if type(leaf) is ArraysCache:
        found = _state_layer(leaf, earlier)
    elif type(leaf) in _ROW_CACHES:
        found = _row_layer(leaf, dtype)
    else:
        found = f"the cache class {type(leaf).__name__} is not known"
    return found if isinstance(found, LayerSpec) else LayerSpec.whole(found, _token_bytes(leaf))


def _row_layer(leaf: object, dtype: str) -> LayerSpec | str:
    keys, values = getattr(leaf, "keys", None), getattr(leaf, "values", None)
    if not isinstance(keys, mx.array) or not isinstance(values, mx.array):
        return "its cache is never filled"
    if keys.ndim != 4 or keys.shape[:3] != values.shape[:3]:
        return f"it keeps rows {keys.shape} and {values.shape}"
    if {dtype_name(keys), dtype_name(values)} != {dtype}:
        return f"its rows are {dtype_name(keys)}, those of other layers {dtype}"
    if keep := getattr(leaf, "keep", 0):
        return f"its rotating cache keeps the first {keep} rows, too"
    dims = keys.shape[1], keys.shape[3], values.shape[3]
    window = getattr(leaf, "max_size", getattr(leaf, "chunk_size", None))
    kind = LayerKind.FULL if window is None else LayerKind.WINDOW
    return LayerSpec(kind, *dims, window)


def _state_layer(leaf: ArraysCache, earlier: object) -> LayerSpec | str:
    now, then = _states(leaf), _states(earlier)
    if now is None or then is None:
        return "some of its arrays are missing, or of a dtype that is not known"
    if now != then:
        return "its arrays change their shape"
    return LayerSpec(LayerKind.STATE, state=now)


def _states(leaf: object) -> tuple[StateArray, ...] | None:
    held: Sequence[object] = getattr(leaf, "cache", ())
    found = [array for array in held if isinstance(array, mx.array)]
    if len(found) < len(held) or any(dtype_name(array) not in ITEM_BYTES for array in found):
        return None
    return tuple(StateArray(tuple(array.shape[1:]), dtype_name(array)) for array in found)


def _token_bytes(leaf: object) -> int:
    """About what a token takes: such caches grow by 256 rows, or by what a token needs."""
    held = sum(array.nbytes for array in arrays(leaf))
    return -(-held // _USUAL_STEP)


def _row_dtype(found: Iterable[object]) -> str:
    """The dtype of most caches of rows."""
    keys = [getattr(leaf, "keys", None) for leaf in found if type(leaf) in _ROW_CACHES]
    dtypes = Counter(dtype_name(array) for array in keys if isinstance(array, mx.array))
    known = [name for name, _ in dtypes.most_common() if name in ITEM_BYTES]
    return known[0] if known else "float32"
