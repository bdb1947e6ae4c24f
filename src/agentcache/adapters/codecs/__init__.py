"""Codecs: how rows become bytes."""

from agentcache.adapters.codecs.native import NativeCodec
from agentcache.adapters.codecs.q8 import Q8Codec
from agentcache.ports.codec import Codec

__all__ = ["CODECS", "NativeCodec", "Q8Codec", "codec"]

CODECS: dict[str, Codec] = {one.name: one for one in (NativeCodec(), Q8Codec())}


def codec(name: str) -> Codec:
    """The codec called `name`. Raises ValueError for one that there is not."""
    try:
        return CODECS[name]
    except KeyError:
        raise ValueError(f"there is no codec {name!r}; there are {', '.join(CODECS)}") from None
