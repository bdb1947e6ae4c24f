"""mlx-lm's prompt caches, as its generation functions take them: made from rows, turned into rows.

For programs that call the model through mlx-lm. All of it runs on the thread that owns the arrays.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b

import mlx_lm
from attrs import define, field, frozen
from mlx_lm.models.cache import KVCache, make_prompt_cache

from agentcache.adapters.mlx.arrays import ArrayCache
from agentcache.adapters.mlx.spec import (
    LanguageModel,
    described,
    leaves,
    probed,
    unsupported,
    with_leaves,
)
from agentcache.domain.errors import InvalidRequest
from agentcache.domain.spec import CacheSpec, LayerKind
from agentcache.ports.rows import Rows

_STEP = 256  # mlx-lm's caches grow by so many rows; with slack the next tokens copy nothing

PromptCache = list[object]


@frozen(eq=False)
class PromptCacheAdapter:
    """Prompt caches of `spec`. `empty` makes one as the model makes it for itself."""

    spec: CacheSpec
    empty: Callable[[], PromptCache]

    @classmethod
    def of_model(cls, model: LanguageModel, name: str = "this model") -> "PromptCacheAdapter":
        """For a loaded model, learnt by running two tokens.

        Raises ModelError for a cache class whose rows are not understood.
        """
        for leaf in leaves(make_prompt_cache(model)):
            _require_known(leaf, name)
        spec, _ = probed(model, name)
        return cls(spec, lambda: list(make_prompt_cache(model)))

    @classmethod
    def like(cls, cache: Sequence[object], name: str = "this model") -> "PromptCacheAdapter":
        """For whatever model filled `cache`. Raises ModelError as `of_model` does."""
        for leaf in leaves(cache):
            _require_known(leaf, name)
        return cls.of_spec(described(cache, name))

    @classmethod
    def of_spec(cls, spec: CacheSpec) -> "PromptCacheAdapter":
        """For a model with one plain cache a layer. Raises ValueError for any other `spec`."""
        if any(layer.kind is not LayerKind.FULL for layer in spec.layers):
            raise ValueError("only plain caches can be made from their spec alone")
        return cls(spec, lambda: [KVCache() for _ in spec.layers])  # type: ignore[no-untyped-call]

    def restoring(self) -> "Restoring":
        """A prompt cache to be filled."""
        return Restoring(self)

    def source(self, cache: Sequence[object], length: int) -> "PromptCacheRows":
        """The rows of `cache`. Raises InvalidRequest unless it holds `length` rows of `spec`."""
        found = tuple(leaves(cache))
        if len(found) != len(self.spec.layers):
            raise InvalidRequest(
                f"the cache has {len(found)} layers, the model {len(self.spec.layers)}", "cache"
            )
        for leaf in found:
            _require_known(leaf, "this prompt cache")
        lengths = sorted({leaf.offset for leaf in found})  # type: ignore[attr-defined]
        if lengths != [length]:
            held = " or ".join(map(str, lengths))
            raise InvalidRequest(
                f"the cache holds {held} rows for {length} ids: commit exactly the ids that were "
                "run (trim the cache, or leave out ids that the model has not seen)",
                "cache",
            )
        if described(cache, "this prompt cache") != self.spec:
            raise InvalidRequest("the cache is of another model or dtype", "cache")
        if any(leaf.keys.shape[0] != 1 for leaf in found):  # type: ignore[attr-defined]
            raise InvalidRequest("the cache is of a batch: extract each sequence first", "cache")
        return PromptCacheRows(ArrayCache(self.spec, length, found))  # type: ignore[arg-type]


@frozen(eq=False)
class PromptCacheRows:
    """Implements `ports.engine.RowSource` over one prompt cache."""

    _cache: ArrayCache

    def export(self, _sequence: int, start: int, stop: int) -> Rows:
        """See `RowSource.export`; these are copies."""
        return self._cache.rows(start, stop)


@define(eq=False)
class Restoring:
    """A prompt cache under way: `blank` makes host arrays for its rows, `filled` takes them in."""

    _adapter: PromptCacheAdapter
    _made: ArrayCache | None = field(default=None, init=False)

    def blank(self, count: int) -> Rows:
        """Host arrays for the first `count` rows; those of an earlier call are given up."""
        self._made = None
        self._made = ArrayCache.of(self._adapter.spec, (count // _STEP + 2) * _STEP)
        return self._made.blank(count)

    def filled(self, count: int) -> PromptCache:
        """The prompt cache with the `count` rows that were filled in; an empty one for 0."""
        if not count or self._made is None:
            return self._adapter.empty()
        self._made.adopt(count)
        return with_leaves(self._adapter.empty(), iter(self._made.leaves))


def rows_digest(model_digest: bytes) -> bytes:
    """The digest of what computes the rows: the model, run by this release of mlx-lm.

    They are never mixed with those of another release, or of our own engine.
    """
    program = f"agentcache prompt cache 1, mlx-lm {mlx_lm.__version__}"
    return blake2b(program.encode() + b"\0" + model_digest, digest_size=32).digest()


def _require_known(leaf: object, name: str) -> None:
    if type(leaf) is not KVCache:
        raise unsupported(leaf, name)
