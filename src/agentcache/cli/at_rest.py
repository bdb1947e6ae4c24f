"""The memory of a home while no model is loaded: enough to look at agents and to move them."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

from attrs import evolve, frozen

from agentcache.adapters.disk.portable import PortableTars
from agentcache.container import Container, open_tokenizer
from agentcache.domain.errors import ModelError
from agentcache.domain.plan import StepPlan, StepResult
from agentcache.domain.session import DEFAULT_TENANT
from agentcache.domain.spec import CacheSpec
from agentcache.mapped_memory import MappedMemory
from agentcache.ports.engine import ModelCard
from agentcache.ports.model_source import ModelFolder
from agentcache.ports.portable import Origin
from agentcache.ports.rows import Rows
from agentcache.ports.session_store import SessionStore
from agentcache.ports.tokenizer import Tokenizer
from agentcache.settings import Settings

_DTYPES = ("float32", "bfloat16", "float16")


@frozen(eq=False)
class UnloadedEngine:
    """An engine in name only: nothing can be asked of it but whose rows are in the home."""

    card: ModelCard

    def start(self, _sequence: int, _capacity: int, _restore: int = 0) -> Rows:
        """Not without a model."""
        return self._refuse()

    def adopt(self, _sequence: int, _length: int) -> None:
        """Not without a model."""
        self._refuse()

    def grow(self, _sequence: int, _capacity: int) -> None:
        """Not without a model."""
        self._refuse()

    def submit(self, _plan: StepPlan) -> None:
        """Not without a model."""
        self._refuse()

    def collect(self) -> StepResult:
        """Not without a model."""
        return self._refuse()

    def trim(self, _sequence: int, _length: int) -> None:
        """Not without a model."""
        self._refuse()

    def export(self, _sequence: int, _start: int, _stop: int) -> Rows:
        """Not without a model."""
        return self._refuse()

    def drop(self, _sequence: int) -> None:
        """There is nothing to drop."""

    def rest(self) -> bool:
        """There is nothing to make ready."""
        return False

    def held_bytes(self) -> int:
        """None."""
        return 0

    def close(self) -> None:
        """There is nothing to close."""

    def _refuse(self) -> NoReturn:
        raise RuntimeError("no model is loaded")


class LateTokenizer:
    """A tokenizer that is loaded when it is first used: only rewinding needs one."""

    def __init__(self, load: Callable[[], Tokenizer]) -> None:
        self._load = cache(load)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._load(), name)


@contextmanager
def at_rest(settings: Settings, arriving: Path | None = None) -> Iterator[Container]:
    """A container whose home is ours, and whose loop has opened it without the model's weights.

    `arriving` is a file to be imported: where the home knows no agent yet, it says how rows of this
    model are kept. Nothing is merged meanwhile, no turn can run, and no model is fetched. Raises
    HomeLocked, HomeError, ModelError, InvalidRequest.
    """
    container = Container()
    container.settings.override(settings)
    with container.home():
        container.progress.override(partial(_refuse_fetching, settings.model))
        container.read_memory.override(MappedMemory.plain())  # nobody comes back here
        late = LateTokenizer(partial(open_tokenizer, container.model(), settings))
        card = _card(container.sessions(), container.model(), container.codecs().names, arriving)
        container.load_engine.override(UnloadedEngine(card))
        container.load_tokenizer.override(late)
        container.assembly.add_kwargs(open_grammars=None)
        loop = container.loop()
        loop.start()
        try:
            loop.wait_open()
            loop.ask(lambda conductor: conductor.compactor.rest()).result()
            yield container
        finally:
            loop.stop(within=0)
            loop.join()


def _refuse_fetching(ref: str, _done: int, _total: int | None, stage: str) -> None:
    if stage == "downloading":
        problem = "it is not on this machine, and only its rows were asked for"
        raise ModelError(ref, problem, f"Fetch it with `agentcache models pull {ref}`")


def _card(
    sessions: SessionStore, model: ModelFolder, codecs: Sequence[str], arriving: Path | None
) -> ModelCard:
    """What there is to know without loading: the rows in the home say of which dtype they are."""
    likely = "float32" if sys.platform == "linux" else "bfloat16"
    origin = Origin(_called(model.ref), model.digest, likely, 1, codecs[0])
    known = Counter((one.key.tenant, one.key.root) for one in sessions.load().sessions)
    found = _most_used(origin, codecs, known, sessions.salt())
    if found is None and arriving is not None:
        with PortableTars().open(arriving) as file:
            found = file.portable.origin
    dtype, epoch = (found.dtype, found.epoch) if found else (origin.dtype, origin.epoch)
    spec = CacheSpec((), dtype=dtype)
    return ModelCard(origin.model, model.digest, spec, 1, 1, frozenset(), epoch=epoch)


def _most_used(
    origin: Origin, codecs: Sequence[str], known: "Counter[tuple[str, bytes]]", salt: bytes
) -> Origin | None:
    """`origin` with the dtype that most sessions of this model have; None where there is none."""
    whose = tuple(product(codecs, {tenant for tenant, _ in known} | {DEFAULT_TENANT}))
    counts = {
        dtype: sum(
            known[tenant, _root(evolve(origin, dtype=dtype, codec=codec), tenant, salt)]
            for codec, tenant in whose
        )
        for dtype in _DTYPES
    }
    best = max(_DTYPES, key=lambda dtype: counts[dtype])
    return evolve(origin, dtype=best) if counts[best] else None


def _root(origin: Origin, tenant: str, salt: bytes) -> bytes:
    from agentcache.domain.segment import root_key

    return root_key(origin.digest, origin.dtype, origin.epoch, origin.codec, tenant, salt)


def _called(ref: str) -> str:
    return Path(ref).name if "/" in ref else ref
