"""mlx-lm's prompt caches, as its generation functions take them: made from rows, turned into rows.

For programs that call the model through mlx-lm. All of it runs on the thread that owns the arrays.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import mlx_lm
from attrs import define, field, frozen
from mlx_lm.models.cache import make_prompt_cache

from agentcache.adapters.mlx import own_rows
from agentcache.adapters.mlx.cache_shape import Shape, made, shape_of
from agentcache.adapters.mlx.spec import LanguageModel, described, leaves, probed
from agentcache.domain.errors import InvalidRequest, ModelError
from agentcache.domain.spec import CacheSpec, LayerKind
from agentcache.ports.rows import Rows, empty_rows

PromptCache = list[object]


@frozen(eq=False)
class PromptCacheAdapter:
    """Prompt caches of one model: their spec, and the classes that they are of."""

    spec: CacheSpec
    shape: Shape

    @classmethod
    def of_model(cls, model: LanguageModel, name: str = "this model") -> "PromptCacheAdapter":
        """For a loaded model, learnt by running a few tokens.

        Raises ModelError for a cache class whose rows are not understood.
        """
        shape = shape_of(make_prompt_cache(model), name)
        spec, _ = probed(model, name)
        for layer in spec.layers:
            if layer.kind is LayerKind.WHOLE:
                raise ModelError(name, layer.reason or "a cache is not understood")
        return cls(spec, shape)

    @classmethod
    def like(cls, cache: Sequence[object], name: str = "this model") -> "PromptCacheAdapter":
        """For whatever model filled `cache`. Raises ModelError as `of_model` does."""
        shape = shape_of(cache, name)
        return cls(described(cache, name), shape)

    def empty(self) -> PromptCache:
        """A prompt cache as the model makes it for itself."""
        return made(self.shape)

    def restoring(self) -> "Restoring":
        """A prompt cache to be filled."""
        return Restoring(self)

    def source(self, cache: Sequence[object], length: int) -> "PromptCacheRows":
        """The rows of `cache`. Raises InvalidRequest unless it holds `length` rows of `spec`."""
        found: tuple[Any, ...] = tuple(leaves(cache))
        if len(found) != len(self.spec.layers):
            raise InvalidRequest(
                f"the cache has {len(found)} layers, the model {len(self.spec.layers)}", "cache"
            )
        shape = shape_of(cache, "this prompt cache")
        _require_length(found, length)
        if shape != self.shape or described(cache, "this prompt cache") != self.spec:
            raise InvalidRequest("the cache is of another model or dtype", "cache")
        if any(array.shape[0] != 1 for leaf in found for array in own_rows.arrays_of(leaf)):
            raise InvalidRequest("the cache is of a batch: extract each sequence first", "cache")
        return PromptCacheRows(self.spec, found, length)


@frozen(eq=False)
class PromptCacheRows:
    """Implements `ports.engine.RowSource` over one prompt cache, at its end."""

    _spec: CacheSpec
    _leaves: Sequence[object]
    _length: int

    def export(self, _sequence: int, start: int, stop: int) -> Rows:
        """See `RowSource.export`; these are copies, and they end where the cache does."""
        if stop != self._length:
            raise InvalidRequest(f"a prompt cache of {self._length} rows ends there, not at {stop}")
        return own_rows.taken(self._spec, self._leaves, start, stop)


@define(eq=False)
class Restoring:
    """A prompt cache under way: `blank` makes host arrays for its rows, `filled` takes them in."""

    _adapter: PromptCacheAdapter
    _rows: Rows | None = field(default=None, init=False)

    def blank(self, count: int) -> Rows:
        """Host arrays for the first `count` rows; those of an earlier call are given up."""
        self._rows = None
        self._rows = empty_rows(self._adapter.spec, 0, count)
        return self._rows

    def filled(self, count: int) -> PromptCache:
        """The prompt cache with the `count` rows that were filled in; an empty one for 0."""
        cache, rows, self._rows = self._adapter.empty(), self._rows, None
        if count and rows is not None:
            own_rows.fill(self._adapter.spec, tuple(leaves(cache)), rows)
        return cache


def rows_digest(model_digest: bytes) -> bytes:
    """The digest of what computes the rows: the model, run by this release of mlx-lm.

    They are never mixed with those of another release, or of our own engine.
    """
    program = f"agentcache prompt cache 1, mlx-lm {mlx_lm.__version__}"
    return blake2b(program.encode() + b"\0" + model_digest, digest_size=32).digest()


def _require_length(found: Sequence[object], length: int) -> None:
    """Caches of states do not count; where there are no others the caller's word is taken."""
    lengths = sorted({seen for one in found if (seen := own_rows.length_of(one)) is not None})
    if lengths not in ([], [length]):
        held = " or ".join(map(str, lengths))
        raise InvalidRequest(
            f"the cache holds {held} rows for {length} ids: commit exactly the ids that were "
            "run (trim the cache, or leave out ids that the model has not seen)",
            "cache",
        )
