"""Codecs: how rows become bytes."""

from agentcache.adapters.codecs.f16 import F16Codec
from agentcache.adapters.codecs.k8v4 import K8V4Codec
from agentcache.adapters.codecs.native import NativeCodec
from agentcache.adapters.codecs.q4 import Q4Codec
from agentcache.adapters.codecs.q8 import Q8Codec
from agentcache.ports.codec import Codec

__all__ = ["CODECS", "F16Codec", "K8V4Codec", "NativeCodec", "Q4Codec", "Q8Codec", "codec"]

_ALL = (NativeCodec(), F16Codec(), Q8Codec(), K8V4Codec(), Q4Codec())
CODECS: dict[str, Codec] = {one.name: one for one in _ALL}


def codec(name: str) -> Codec:
    """The codec called `name`. Raises ValueError for one that there is not."""
    try:
        return CODECS[name]
    except KeyError:
        raise ValueError(f"there is no codec {name!r}; there are {', '.join(CODECS)}") from None
