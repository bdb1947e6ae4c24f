"""The models that can be served: where they are found, and how each of them is loaded."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

from attrs import evolve, frozen

from agentcache.assembly import Assembly
from agentcache.ports.engine import Engine
from agentcache.ports.model_source import ModelFolder, ModelSource
from agentcache.ports.tokenizer import Tokenizer


def _unheard(_done: int, _total: int | None, _stage: str) -> None:
    """For models that are fetched while nobody watches."""


@frozen(eq=False)
class Found:
    """A model that is on disk, and how it is served: `assembly` is called on the engine thread."""

    folder: ModelFolder
    assembly: Assembly


@frozen(eq=False)
class ModelShelf:
    """Finds models for `assembly`, whose other parts all models share."""

    source: ModelSource
    assembly: Assembly
    open_engine: Callable[[ModelFolder], Engine]
    open_tokenizer: Callable[[ModelFolder], Tokenizer]

    def known(self) -> tuple[str, ...]:
        """What the models that are kept on this machine are found by. Looks at the disk."""
        return tuple(record.ref for record in self.source.list())

    def find(self, ref: str) -> "Future[Found]":
        """Fetch and convert the model `ref` as far as needed, and see that it can be spoken to.

        On a thread of its own, which no end of the process waits for: half-made models are swept
        away by the next one. The future raises ModelError.
        """
        found: Future[Found] = Future()

        def run() -> None:
            try:
                found.set_result(self._found(ref))
            except BaseException as error:
                found.set_exception(error)

        if found.set_running_or_notify_cancel():
            threading.Thread(target=run, name="agentcache-shelf", daemon=True).start()
        return found

    def _found(self, ref: str) -> Found:
        folder = self.source.resolve(ref, _unheard)
        tokenizer = self.open_tokenizer(folder)  # while the other model is served

        def load_engine() -> Engine:
            return self.open_engine(folder)

        return Found(
            folder,
            evolve(self.assembly, load_engine=load_engine, load_tokenizer=lambda: tokenizer),
        )
