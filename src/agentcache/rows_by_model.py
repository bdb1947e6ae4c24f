"""The rows that a home holds for whoever runs mlx-lm: those of one model at a time."""

import json
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import cattrs
from attrs import define, field, frozen

from agentcache.adapters.disk.catalogue import SqliteSessionStore
from agentcache.adapters.disk.files import make_folder, write_durably
from agentcache.adapters.disk.home import Home
from agentcache.adapters.disk.segments import DiskSegmentStore
from agentcache.adapters.memory.telemetry import NullTelemetry
from agentcache.adapters.models.digest import DigestMemo, adapter_digest, model_digest
from agentcache.adapters.models.hub import Hub, is_hub_id
from agentcache.domain.errors import AgentCacheError, Closed
from agentcache.domain.tokens import Tokens, tokens
from agentcache.ports.codec import Codec
from agentcache.ports.model_source import Stage
from agentcache.prefixes import Origin, PrefixStore, Stores
from agentcache.settings import Settings

if TYPE_CHECKING:
    from agentcache.adapters.mlx.prompt_cache import PromptCache, PromptCacheAdapter

log = logging.getLogger(__name__)


@frozen
class Caps:
    """Bytes that encoded rows may take in RAM and in the home."""

    memory: int
    disk: int


@contextmanager
def opened_store(home: Home, origin: Origin, codec: Codec, caps: Caps) -> Iterator[PrefixStore]:
    """The rows of `origin` in `home`, which the caller keeps open for longer."""
    with ExitStack() as stack:
        segments = DiskSegmentStore.open(home.segments, home.quarantine)
        stack.callback(segments.close)
        sessions = SqliteSessionStore.open(home.catalogue)
        stores = Stores(
            codec,
            segments,
            sessions,
            NullTelemetry(),
            caps.memory,
            caps.disk,
            Settings().disk_floor,
            home.free_bytes,
        )
        store = PrefixStore.open(origin, stores)
        stack.callback(store.close)
        yield store


def folder_digest(home: Home, folder: str | Path, adapter: str | Path | None = None) -> bytes:
    """The digest of a model's folder and of the adapter loaded over it.

    Files' hashes are remembered in the home. Raises OSError or ValueError.
    """
    memo = DigestMemo(home.models / "digests.json")
    digest = model_digest(Path(folder).expanduser(), memo)
    if adapter is None:
        return digest
    return adapter_digest(digest, Path(adapter).expanduser(), memo)


@frozen(eq=False)
class _Served:
    """The rows of the model that is served, and what makes prompt caches of them."""

    model: object
    adapter: "PromptCacheAdapter"
    store: PrefixStore
    stack: ExitStack


@define(eq=False)
class RowsByModel:
    """Implements `lru_prompt_cache.Memory` over a home that is open until `close`.

    A model is known by mlx-lm's key: the paths of model, adapter and draft model. Its rows are
    those of the very files. What cannot be kept is told to the log, and is no error.
    """

    _home: Home
    _codec: Codec
    _caps: Caps
    _served: _Served | None = field(default=None, init=False)
    _digests: dict[object, bytes | None] = field(factory=dict, init=False)
    _lock: threading.RLock = field(factory=threading.RLock, init=False)
    _closed: bool = field(default=False, init=False)

    def known(self, model: object, ids: Sequence[int]) -> int:
        """How many rows `fetch` would restore."""
        known = 0
        with self._lock, _told():
            served, wanted = self._find(model), _tokens(ids)
            if served and wanted:
                known = served.store.known(wanted)
        return known

    def fetch(self, model: object, ids: Sequence[int]) -> "tuple[PromptCache, int] | None":
        """A prompt cache with the longest known prefix, and its length; None for a miss."""
        found = None
        with self._lock, _told():
            served, wanted = self._find(model), _tokens(ids)
            if served and wanted:
                restoring = served.adapter.restoring()
                if restored := served.store.restore(wanted, restoring.blank):
                    found = restoring.filled(restored), restored
        return found

    def insert(self, model: object, ids: Sequence[int], cache: Sequence[object]) -> None:
        """Keep the rows of `ids`, which `cache` holds; they are written soon after."""
        with self._lock, _told():
            wanted, digest = _tokens(ids), self._digest(model)
            if digest is None or not wanted:
                return
            served = self._find(model) or self._begin(model, digest, cache)
            source = served.adapter.source(cache, len(wanted))
            kept = served.store.keep(wanted, source, wait=False)
            if kept.problem:
                log.warning("prompt caches cannot be written: %s", kept.problem)

    def flush(self) -> None:
        """Wait until everything has been written, as far as it can be."""
        with self._lock:
            if self._served is not None:
                self._served.store.flush()

    def close(self) -> None:
        """Write what is left to be written, and give the home up. Closing twice is no error."""
        with self._lock:
            self._closed = True
            self._put_back()
            self._home.close()

    # -- models ------------------------------------------------------------------------------

    def _find(self, model: object) -> _Served | None:
        """The rows of `model`, if any were ever kept."""
        if self._closed:
            raise Closed()
        if self._served is not None and self._served.model == model:
            return self._served
        digest = self._digest(model)
        adapter = _read_layout(self._layout(digest)) if digest else None
        return self._serve(model, digest, adapter) if digest and adapter else None

    def _begin(self, model: object, digest: bytes, cache: Sequence[object]) -> _Served:
        """The first rows of `model`: what its cache looks like is written down.

        After a restart nothing else tells it before the first prompt.
        """
        from agentcache.adapters.mlx.prompt_cache import PromptCacheAdapter

        adapter = PromptCacheAdapter.like(cache)
        path = self._layout(digest)
        make_folder(path.parent)
        write_durably(path, [json.dumps(cattrs.unstructure(adapter)).encode()])
        return self._serve(model, digest, adapter)

    def _serve(self, model: object, digest: bytes, adapter: "PromptCacheAdapter") -> _Served:
        self._put_back()
        origin = Origin(digest, adapter.spec)
        stack = ExitStack()
        store = stack.enter_context(opened_store(self._home, origin, self._codec, self._caps))
        self._served = _Served(model, adapter, store, stack)
        return self._served

    def _put_back(self) -> None:
        served, self._served = self._served, None
        if served is not None:
            served.stack.close()

    def _layout(self, digest: bytes) -> Path:
        return self._home.path / "layouts" / f"{digest.hex()}.json"

    def _digest(self, model: object) -> bytes | None:
        """The digest of `model`; None when its key does not say which files it was made of."""
        if model not in self._digests:
            self._digests[model] = self._new_digest(model)
        return self._digests[model]

    def _new_digest(self, model: object) -> bytes | None:
        from agentcache.adapters.mlx.prompt_cache import rows_digest

        match model:
            case (str() | Path() as path, None | str() | Path() as adapter, None):
                pass
            case _:
                log.warning("prompt caches of model %r are kept in RAM only", model)
                return None
        try:
            folder = Path(path).expanduser()
            if not folder.is_dir() and is_hub_id(str(path)):
                folder = Hub().fetch(str(path), _unwatched)
            return rows_digest(folder_digest(self._home, folder, adapter))
        except (AgentCacheError, OSError, ValueError) as error:
            log.warning("prompt caches of model %r are kept in RAM only: %s", model, error)
            return None


@contextmanager
def _told() -> Iterator[None]:
    """Whatever goes wrong with the memory, whoever generates goes on without it."""
    try:
        yield
    except AgentCacheError as error:
        log.warning("a prompt cache is kept in RAM only: %s", error)
    except Exception:
        log.exception("a prompt cache is kept in RAM only")


def _unwatched(_done: int, _total: int | None, _stage: Stage) -> None:
    """mlx-lm has fetched the model before, so there is nothing to watch."""


def _tokens(ids: Sequence[int]) -> "Tokens[int]":
    """The ids, or none: mlx-lm's keys of images are no token ids."""
    try:
        return tokens(ids)
    except (TypeError, OverflowError):
        return tokens()


def _read_layout(path: Path) -> "PromptCacheAdapter | None":
    """What `_begin` wrote; None when there is nothing, or nothing that makes sense."""
    from agentcache.adapters.mlx.prompt_cache import PromptCacheAdapter

    try:
        adapter = cattrs.structure(json.loads(path.read_bytes()), PromptCacheAdapter)
        leaves = adapter.empty()
    except (OSError, ValueError, TypeError, RecursionError, cattrs.BaseValidationError):
        return None
    return adapter if leaves else None
