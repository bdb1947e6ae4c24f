"""Opening agentcache in this process, and closing it: what the library and the commands share."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Self

from attrs import define, evolve, field
from dependency_injector import providers
from typed_settings.exceptions import TsError

from agentcache.container import Container, no_progress
from agentcache.domain.errors import Closed
from agentcache.ports.model_source import Progress
from agentcache.service import Service
from agentcache.settings import Settings, load, problems

Watch = Callable[[str], AbstractContextManager[Progress]]
Adapters = Mapping[str, Callable[[], object]]


def settings_of(given: Mapping[str, Any]) -> Settings:
    """What is `given`, then environment and file, then defaults; what is None counts as left out.

    Raises ValueError, saying what to do, for a value that cannot work, TypeError for a name.
    """
    try:
        base = load()
    except TsError as error:
        raise ValueError(problems(error)) from error
    return evolve(base, **{name: value for name, value in given.items() if value is not None})


def container_of(settings: Settings, adapters: Adapters) -> Container:
    """The bundled parts, those named in `adapters` made by the functions given there."""
    container = Container()
    container.settings.override(settings)
    for name, make in adapters.items():
        if name not in container.providers:
            known = ", ".join(sorted(container.providers))
            raise TypeError(f"there is no part {name!r} to be replaced; there are: {known}")
        container.providers[name].override(providers.Singleton(make))
    return container


def _unwatched(_ref: str) -> AbstractContextManager[Progress]:
    return nullcontext(no_progress)


@contextmanager
def running(container: Container, watch: Watch = _unwatched) -> Iterator[None]:
    """The home is ours, the model on disk, and the loop is opening.

    While a model is fetched, what `watch` gives for its name is told how far that is. At the end
    the loop has committed everything and stopped. Raises HomeLocked, HomeError, ModelError.
    """
    with container.home():
        with watch(container.settings().model) as progress:
            container.progress.override(progress)
            container.model()
        loop = container.loop()
        loop.start()
        try:
            yield
        finally:
            loop.stop(within=0)
            loop.join()


@define(eq=False)
class Running:
    """A service that runs in this process, until `close`. Methods may be called from any thread."""

    _service: Service
    _undo: ExitStack
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _closed: bool = field(default=False, init=False)

    @classmethod
    def open(cls, settings: Settings, adapters: Adapters, watch: Watch = _unwatched) -> Self:
        """Returns once the model is loaded, which may have to be fetched first.

        Raises HomeLocked, HomeError, ModelError; nothing is left open then.
        """
        with ExitStack() as undo:
            container = container_of(settings, adapters)
            undo.enter_context(running(container, watch))
            container.loop().wait_open()
            return cls(container.service(), undo.pop_all())
        raise AssertionError("an exit stack swallows nothing")

    @property
    def service(self) -> Service:
        """Raises Closed after `close`."""
        if self._closed:
            raise Closed()
        return self._service

    def close(self) -> None:
        """Cancel what runs, write what is left to be written, and release the home. Idempotent."""
        self._closed = True
        with self._lock:
            self._undo.close()
