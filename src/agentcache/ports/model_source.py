"""The port to where models come from."""

from pathlib import Path
from typing import Literal, Protocol

from attrs import frozen

Stage = Literal["waiting", "downloading", "checking", "converting"]


class Progress(Protocol):
    """Told how far a resolve has come; may be called from other threads, one call at a time."""

    def __call__(self, done: int, total: int | None, stage: Stage, /) -> None:
        """`done` of `total` bytes of `stage` are through; `total` is None when it is not known.

        What it raises ends the resolve, which leaves nothing half-made.
        """
        ...


@frozen
class ModelFolder:
    """A model that is ready to load: `path` holds config, weights and tokenizer.

    `digest` (32 bytes) covers every file of it that changes KV values. `ref` is what it was asked
    for by.
    """

    ref: str
    path: Path
    digest: bytes


@frozen
class ModelRecord:
    """A model that is kept on this machine and takes `nbytes` there; `resolve(ref)` finds it."""

    ref: str
    path: Path
    nbytes: int


class ModelSource(Protocol):
    """Turns what a user calls a model into a folder that can be loaded.

    Safe to call from any thread and from several processes at once.
    """

    def resolve(self, ref: str, progress: Progress, /) -> ModelFolder:
        """Fetch, check and convert the model `ref` as far as that was not done before.

        A folder appears whole or not at all, also when the process is killed. Raises ModelError.
        """
        ...

    def list(self) -> tuple[ModelRecord, ...]:
        """The models that `remove` can delete, by name."""
        ...

    def remove(self, ref: str) -> int:
        """Delete the model `ref`; return the bytes freed. Raises ModelError when it is not kept."""
        ...
