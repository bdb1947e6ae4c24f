"""Models from the Hugging Face hub, kept in the cache that other tools use too."""

import io
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
from attrs import frozen
from huggingface_hub.errors import (
    CacheNotFound,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from tqdm import tqdm  # type: ignore[import-untyped]

from agentcache.adapters.models.local_folder import check_folder
from agentcache.domain.errors import ModelError
from agentcache.ports.model_source import ModelRecord, Progress

# The files that mlx-lm reads.
_PATTERNS = [
    "*.json",
    "model*.safetensors",
    "*.py",
    "tokenizer.model",
    "*.tiktoken",
    "tiktoken.model",
    "*.txt",
    "*.jsonl",
    "*.jinja",
]
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# The client's HTTP library changed twice; its errors share the base of the client's own.
_FAILURES: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)),
)


def is_hub_id(ref: str) -> bool:
    """Whether `ref` is spelled like a model on the hub: `organisation/name`."""
    return _ID.fullmatch(ref) is not None


@frozen
class Hub:
    """The hub at `endpoint` and the cache folder `cache`; None means the client's own settings."""

    cache: Path | None = None
    endpoint: str | None = None

    def fetch(self, ref: str, progress: Progress) -> Path:
        """The folder of the model `ref`; without a network when it was fetched before.

        Raises ModelError.
        """
        folder = self._cached(ref)
        if folder is not None:
            return folder
        progress(0, None, "downloading")
        try:
            folder = self._snapshot(ref, local_files_only=False, tqdm_class=_bar(progress))
        except _FAILURES as error:
            raise _explained(ref, error) from error
        return check_folder(ref, folder)

    def list(self) -> tuple[ModelRecord, ...]:
        """The models in the cache that can be loaded."""
        return tuple(
            ModelRecord(repo.repo_id, revision.snapshot_path, repo.size_on_disk)
            for repo in self._repos()
            for revision in repo.revisions
            if "main" in revision.refs and _is_whole(repo.repo_id, revision.snapshot_path)
        )

    def remove(self, ref: str) -> int:
        """Delete every revision of `ref` from the cache; return the bytes freed, 0 if none."""
        for repo in self._repos():
            if repo.repo_id == ref:
                hashes = [revision.commit_hash for revision in repo.revisions]
                doomed = huggingface_hub.scan_cache_dir(self.cache).delete_revisions(*hashes)
                doomed.execute()
                return doomed.expected_freed_size
        return 0

    def _cached(self, ref: str) -> Path | None:
        try:
            return check_folder(ref, self._snapshot(ref, local_files_only=True))
        except (LocalEntryNotFoundError, ModelError):
            return None
        except ValueError as error:
            raise _explained(ref, error) from error

    def _snapshot(
        self, ref: str, *, local_files_only: bool, tqdm_class: type[tqdm] | None = None
    ) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                ref,
                cache_dir=self.cache,
                endpoint=self.endpoint,
                allow_patterns=_PATTERNS,
                local_files_only=local_files_only,
                tqdm_class=tqdm_class,
            )
        )

    def _repos(self) -> Iterator[huggingface_hub.CachedRepoInfo]:
        try:
            info = huggingface_hub.scan_cache_dir(self.cache)
        except CacheNotFound:
            return
        yield from (repo for repo in info.repos if repo.repo_type == "model")


def _is_whole(ref: str, folder: Path) -> bool:
    try:
        check_folder(ref, folder)
    except ModelError:
        return False
    return True


def _explained(ref: str, error: BaseException) -> ModelError:
    if isinstance(error, GatedRepoError):
        remedy = "Accept its terms on its page, then log in with `hf auth login`"
        return ModelError(ref, "is gated", remedy)
    if isinstance(error, RepositoryNotFoundError):
        remedy = "Check the spelling; for a private model log in with `hf auth login`"
        return ModelError(ref, "is neither a folder here nor a model on the hub", remedy)
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return ModelError(ref, f"the hub answered with status {status}", "Try again later")
    if isinstance(error, OSError) and error.errno:
        return ModelError(ref, f"cannot be kept here: {os.strerror(error.errno)}", "Make room")
    if isinstance(error, ValueError):
        return ModelError(ref, f"is no valid id: {error}", "Write organisation/name")
    remedy = "Check the network (and HF_HUB_OFFLINE), or name a local folder"
    return ModelError(ref, "is not on this machine, and the hub cannot be reached", remedy)


def _bar(progress: Progress) -> type[tqdm]:
    """A progress bar class for the client that draws nothing and tells `progress` instead."""
    most, telling = 0, threading.Lock()

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | {"file": io.StringIO(), "disable": False})

        # Not in display(): tqdm holds a lock there, which it keeps for good if that raises.
        def update(self, n: float | None = 1) -> None:
            nonlocal most
            super().update(n)
            # Several bars count the same bytes, as received and as written.
            with telling:
                if self.unit == "B" and self.n > most:
                    most = int(self.n)
                    progress(most, int(self.total) if self.total else None, "downloading")

        def display(self, *_args: Any, **_options: Any) -> None:
            pass

    return Bar
