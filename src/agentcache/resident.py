"""The model that is served: loaded, and exchanged for another, on the engine thread."""

import gc
import logging
import traceback
from collections.abc import Callable
from typing import Protocol

from attrs import define, field

from agentcache.conductor import Conductor
from agentcache.domain.errors import AgentCacheError
from agentcache.keeper import Keeper
from agentcache.outbox import Post
from agentcache.ports.clock import Clock

log = logging.getLogger(__name__)


class Assemble(Protocol):
    """Makes conductors of one model. Called on the engine thread."""

    def __call__(self, post: Post, /) -> Conductor:
        """Open the home and load the model; `post` runs a call on the engine thread."""
        ...

    def succeed(self, keeper: Keeper, salt: bytes, post: Post, /) -> Conductor:
        """Load the model where another one was; what `keeper` keeps, and its home, stay open.

        When it raises, nothing of the model is left.
        """
        ...


@define(eq=False)
class Resident:
    """The conductor of the one model that is in memory.

    `number` counts the models that were loaded so far. `load_seconds` is how long the last one took
    to load, and at least one.
    """

    clock: Clock
    post: Post
    conductor: Conductor | None = field(default=None, init=False)
    number: int = field(default=0, init=False)
    load_seconds: float = field(default=1.0, init=False)
    _assemble: Assemble | None = field(default=None, init=False)

    def load(self, assemble: Assemble) -> None:
        """Open the home and load the first model. Raises what `assemble` raises."""
        self._load(lambda: assemble(self.post))
        self._assemble = assemble

    def exchange(self, assemble: Assemble) -> Exception | None:
        """Drop all of the model before anything of another one is there; load that.

        Returns why that failed: then the old one is loaded again. Raises what keeps it from that;
        the home is closed then.
        """
        assert self.conductor is not None
        assert self._assemble is not None
        keeper, salt = self.conductor.keeper, self.conductor.roots.salt
        self._dismiss()
        problem = self._succeed(assemble, keeper, salt)
        if problem is None:
            self._assemble = assemble
        elif (worse := self._succeed(self._assemble, keeper, salt)) is not None:
            keeper.outbox.writer.close()
            raise worse
        return problem

    def close(self) -> None:
        """Finish what is being read and written, and drop the model."""
        conductor, self.conductor = self.conductor, None
        if conductor is not None:
            conductor.close()

    def _dismiss(self) -> None:
        """Drop the model. One that cannot even be closed is no reason to serve none any more."""
        conductor, self.conductor = self.conductor, None
        assert conductor is not None
        try:
            conductor.dismiss()
        except Exception as error:
            told = "".join(traceback.format_exception(error))  # text holds no frames
            log.error("the model could not be closed\n%s", told)

    def _load(self, make: Callable[[], Conductor]) -> None:
        began = self.clock.monotonic()
        self.conductor = make()
        self.number += 1
        self.load_seconds = max(1.0, self.clock.monotonic() - began)

    def _succeed(self, assemble: Assemble, keeper: Keeper, salt: bytes) -> Exception | None:
        """Load a model; return why that failed, without anything that holds a part of it."""
        try:
            self._load(lambda: assemble.succeed(keeper, salt, self.post))
        except Exception as error:
            if not isinstance(error, AgentCacheError):
                told = "".join(traceback.format_exception(error))  # text holds no frames
                log.error("the model could not be loaded\n%s", told)
            problem = _bare(error)
        else:
            return None
        gc.collect()
        return problem


def _bare(error: Exception) -> Exception:
    """The error without the frames that it went through, whose variables it keeps alive."""
    at: BaseException | None = error
    while at is not None:
        at.__traceback__, at.__context__, at = None, None, at.__cause__
    return error
