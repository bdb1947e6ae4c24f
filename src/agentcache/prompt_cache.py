"""For programs that run mlx-lm themselves: its prompt caches, kept in a home.

`prompt_caches` is for a generation loop of one's own. `lru_prompt_cache` takes the place of
mlx-lm's `LRUPromptCache`, in which `mlx_lm.server` keeps its conversations.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from attrs import define, frozen

from agentcache.adapters.disk.home import Home
from agentcache.domain.errors import InvalidRequest
from agentcache.domain.session import DEFAULT_TENANT
from agentcache.domain.tokens import Tokens, tokens
from agentcache.plugins import codec as codec_of
from agentcache.ports.codec import Codec
from agentcache.prefixes import Kept, Origin, PrefixStore
from agentcache.rows_by_model import Caps, RowsByModel, folder_digest, opened_store
from agentcache.settings import Settings, parse_size

if TYPE_CHECKING:
    from agentcache.adapters.mlx.lru_prompt_cache import PersistentLRUPromptCache
    from agentcache.adapters.mlx.prompt_cache import PromptCache, PromptCacheAdapter
    from agentcache.adapters.mlx.spec import LanguageModel

__all__ = ["Found", "Kept", "PromptCaches", "lru_prompt_cache", "prompt_caches"]

DEFAULT_HOME = Settings().home
DEFAULT_MEMORY = "256MiB"
DEFAULT_DISK = Settings().disk_cap


@frozen(eq=False)
class Found:
    """A prompt cache that holds the first `restored` rows, and the `rest` of the ids: run these."""

    cache: "PromptCache"
    rest: list[int]
    restored: int


@define(eq=False)
class PromptCaches:
    """The prompt caches of one loaded model, by the ids that were run.

    Call it from the thread that runs the model: arrays are made and read there. Calls from several
    threads come one after another. A context manager; ValueError after `close`.
    """

    _adapter: "PromptCacheAdapter"
    _store: PrefixStore
    _open: ExitStack

    def fetch(self, ids: Sequence[int]) -> Found:
        """The rows of the longest known prefix of `ids` that leaves at least one to run.

        The cache is the caller's own: nobody else sees what it does with it. What is damaged on
        disk is a miss. Raises InvalidRequest when `ids` is empty or holds what is no token id.
        """
        wanted, restoring = _checked(ids), self._adapter.restoring()
        restored = self._store.restore(wanted, restoring.blank)
        return Found(restoring.filled(restored), wanted[restored:].tolist(), restored)

    def commit(self, ids: Sequence[int], cache: Sequence[object], wait: bool = True) -> Kept:
        """Keep the rows of `ids`, which `cache` holds: only those that are new are encoded.

        With `wait` they are durable on return, or `Kept.problem` says why not; without it they are
        written soon after. Raises InvalidRequest when `cache` holds other than `len(ids)` rows or
        is not this model's; nothing was kept then.
        """
        wanted = _checked(ids)
        return self._store.keep(wanted, self._adapter.source(cache, len(wanted)), wait)

    def flush(self) -> None:
        """Wait until everything that was committed has been written, as far as it can be."""
        self._store.flush()

    @property
    def memory_bytes(self) -> int:
        """Bytes of encoded rows in RAM."""
        return self._store.memory_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes of encoded rows in the home, those of other models among them."""
        return self._store.disk_bytes

    def close(self) -> None:
        """Write what is left to be written, and give the home up. Closing twice is no error."""
        self._open.close()

    def __enter__(self) -> "PromptCaches":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def prompt_caches(
    model: "LanguageModel",
    *,
    home: str | Path = DEFAULT_HOME,
    model_path: str | Path | None = None,
    codec: str | Codec = "native",
    tenant: str = DEFAULT_TENANT,
    memory: int | str = DEFAULT_MEMORY,
    disk: int | str = DEFAULT_DISK,
) -> PromptCaches:
    """Open the prompt caches of `model`, loaded by mlx-lm, that are kept in `home`.

    Rows are found again by the model's digest: with `model_path`, the folder that it was loaded
    from as it is, that of the folder's files, which is remembered; else that of the weights in
    memory, each of which is read once. `memory` and `disk` cap what encoded rows take; sizes like
    "256MiB". Raises HomeLocked when another process has the home, HomeError, ModelError when a
    cache class of the model is not supported, AdapterError for an unknown codec,
    ValueError for a wrong size.
    """
    from agentcache.adapters.mlx.prompt_cache import PromptCacheAdapter, rows_digest
    from agentcache.adapters.mlx.weights_digest import weights_digest

    chosen = codec_of(codec) if isinstance(codec, str) else codec
    caps = Caps(parse_size(memory), parse_size(disk))
    adapter = PromptCacheAdapter.of_model(model)
    with ExitStack() as undo:
        opened = undo.enter_context(Home.open(Path(home)))
        digest = folder_digest(opened, model_path) if model_path else weights_digest(model)
        origin = Origin(rows_digest(digest), adapter.spec, tenant)
        store = undo.enter_context(opened_store(opened, origin, chosen, caps))
        return PromptCaches(adapter, store, undo.pop_all())


def lru_prompt_cache(
    max_size: int = 10,
    max_bytes: int = 1 << 63,
    *,
    home: str | Path = DEFAULT_HOME,
    codec: str | Codec = "native",
    memory: int | str = DEFAULT_MEMORY,
    disk: int | str = DEFAULT_DISK,
) -> "PersistentLRUPromptCache":
    """An `LRUPromptCache` of mlx-lm whose caches are also kept in `home`.

    `max_size` and `max_bytes` are mlx-lm's own limits, for caches in RAM; `memory` and `disk` cap
    what encoded rows take. Raises what `prompt_caches` raises for the home, codec and sizes.
    """
    from agentcache.adapters.mlx.lru_prompt_cache import PersistentLRUPromptCache

    chosen = codec_of(codec) if isinstance(codec, str) else codec
    caps = Caps(parse_size(memory), parse_size(disk))
    rows = RowsByModel(Home.open(Path(home)), chosen, caps)
    return PersistentLRUPromptCache(rows, max_size, max_bytes)


def _checked(ids: Sequence[int]) -> "Tokens[int]":
    try:
        wanted = tokens(ids)
    except (TypeError, OverflowError) as error:
        raise InvalidRequest(f"ids must be token ids (0 to 2**32 - 1): {error}", "ids") from None
    if not wanted:
        raise InvalidRequest("ids is empty: give at least one token id", "ids")
    return wanted
