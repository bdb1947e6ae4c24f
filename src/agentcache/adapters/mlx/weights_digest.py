"""The digest of a model that is loaded already, wherever it came from."""

from collections.abc import Iterator
from hashlib import blake2b

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from agentcache.adapters.mlx.spec import LanguageModel

_SCALARS = (bool, int, float, str, type(None))


def weights_digest(model: LanguageModel) -> bytes:
    """32 bytes that differ whenever a weight, a shape, a dtype or a number in any module does.

    Reads every weight once: about a second a gigabyte.
    """
    digest = blake2b(b"agentcache weights 1", digest_size=32)
    for part in (*_modules(model), *_arguments(model)):
        _add(digest, part.encode())
    arrays: dict[str, mx.array] = dict(tree_flatten(model.parameters()))  # type: ignore[attr-defined]
    for name, array in sorted(arrays.items()):
        _add(digest, f"{name} {array.dtype} {tuple(array.shape)}".encode())
        if array.size:
            digest.update(np.asarray(array.reshape(-1).view(mx.uint8)).data)
    return digest.digest()


def _modules(model: LanguageModel) -> Iterator[str]:
    """Every module's class, and the plain numbers and words it is set up with."""
    for name, module in sorted(model.named_modules(), key=_first):  # type: ignore[attr-defined]
        kept = {
            key: value
            for key, value in sorted(vars(module).items())
            if isinstance(value, _SCALARS) and not key.startswith("_")
        }
        yield f"{name} {type(module).__module__}.{type(module).__qualname__} {kept}"


def _arguments(model: LanguageModel) -> Iterator[str]:
    arguments = getattr(model, "args", None)
    if arguments is not None:
        yield repr(arguments)


def _first(named: tuple[str, object]) -> str:
    return named[0]


def _add(digest: "blake2b", part: bytes) -> None:
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)
