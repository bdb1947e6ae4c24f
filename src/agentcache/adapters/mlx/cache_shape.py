"""What the cache objects of one model are, as plain values: to be made again, or written down."""

from collections.abc import Iterable, Sequence
from typing import Any

from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    KVCache,
    RotatingKVCache,
)

from agentcache.adapters.mlx.spec import unsupported

Shape = list[Any]  # a list a cache: its class, then what it is made with
_SIZED: dict[type, tuple[str, str]] = {
    RotatingKVCache: ("RotatingKVCache", "max_size"),
    ChunkedKVCache: ("ChunkedKVCache", "chunk_size"),
}


def shape_of(caches: Iterable[object], name: str) -> Shape:
    """The shape of `caches`. Raises ModelError for a class whose rows are not understood."""
    return [_shape(cache, name) for cache in caches]


def made(shape: Sequence[Shape]) -> list[object]:
    """Empty caches of `shape`. Raises ValueError or TypeError for what is no shape."""
    return [_made(*one) for one in shape]


def _shape(cache: object, name: str) -> Shape:
    if isinstance(cache, CacheList):
        return ["CacheList", shape_of(cache.caches, name)]
    if type(cache) is KVCache:
        return ["KVCache"]
    if type(cache) is ArraysCache:
        return ["ArraysCache", len(cache.cache)]
    if type(cache) not in _SIZED or getattr(cache, "keep", False):
        raise unsupported(cache, name)
    label, size = _SIZED[type(cache)]
    return [label, int(getattr(cache, size))]


def _made(label: str, size: Any = None) -> object:
    match label, size:
        case "KVCache", None:
            return KVCache()  # type: ignore[no-untyped-call]
        case "CacheList", list():
            return CacheList(*made(size))  # type: ignore[no-untyped-call]
        case "ArraysCache", int():
            return ArraysCache(size)
        case "RotatingKVCache", int():
            return RotatingKVCache(size)  # type: ignore[no-untyped-call]
        case "ChunkedKVCache", int():
            return ChunkedKVCache(size)  # type: ignore[no-untyped-call]
    raise ValueError(f"{label!r} of {size!r} is no cache")
