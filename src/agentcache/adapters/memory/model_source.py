"""A model source over a dict: models that stand ready, nothing fetched or converted."""

from collections.abc import Iterable

from agentcache.domain.errors import ModelError
from agentcache.ports.model_source import ModelFolder, ModelRecord, Progress


class MemoryModelSource:
    """The port ModelSource over `folders`, each found by its ref. Their files are not looked at."""

    def __init__(self, folders: Iterable[ModelFolder] = ()) -> None:
        self._folders = {folder.ref: folder for folder in folders}

    def resolve(self, ref: str, _progress: Progress) -> ModelFolder:
        """See the port."""
        if ref not in self._folders:
            raise ModelError(ref, "there is no such model", f"Name one of {sorted(self._folders)}")
        return self._folders[ref]

    def list(self) -> tuple[ModelRecord, ...]:
        """See the port. Nothing takes room here."""
        return tuple(ModelRecord(ref, self._folders[ref].path, 0) for ref in sorted(self._folders))

    def remove(self, ref: str) -> int:
        """See the port."""
        if self._folders.pop(ref, None) is None:
            raise ModelError(ref, "is not kept here", f"Name one of {sorted(self._folders)}")
        return 0
